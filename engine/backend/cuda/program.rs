//! A plan on the GPU: launches prepared once for every bucket, put into the stream every step.
//!
//! In: a plan, weights, states; sizes and arrays of a step. Out: rows of results. Owns: the arena, the blocks through
//! which a step's arrays and results travel, prepared launches, recorded graphs. A step is one copy to the GPU, the
//! launches of the smallest bucket that holds it, one copy back; nothing is allocated and nobody waits in between.
//! Where the results are logits, the launches end with choosing tokens, and those are what is copied back.
//! Not here: which kernel an operation takes (`lower.rs`).

use std::sync::Arc;

use super::backend::Shared;
use super::chooser::{self, Chooser};
use super::driver::{CapturedGraph, DeviceBuffer, PinnedBuffer, Stream};
use super::lower::Lowering;
use super::scratch::Scratch;
use super::staging::{Staging, StagingLayout, widen};
use super::upload::Weights;
use super::{Launch, lower};
use crate::backend::sampling::{Choices, SamplingBatch, SamplingLimits};
use crate::backend::{Bucket, Input, Probe, Program};
use crate::graph::{Graph, Kind, NodeId, Op, Plan, Sizes, Sym};
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// A compiled plan.
pub struct CudaProgram {
    shared: Arc<Shared>,
    plan: Plan,
    buckets: Vec<Prepared>,
    staging: Staging,
    arena: DeviceBuffer,
    results: PinnedBuffer,
    chooser: Option<Chooser>,
    /// Which of the graph's inputs choose rows for a layer that gathers them itself.
    row_inputs: Vec<usize>,
    /// Sizes of the last run.
    sizes: Sizes,
    /// Read by the launches, which hold addresses only.
    _scratch: Scratch,
    _weights: Weights,
    _states: Vec<Arc<DeviceBuffer>>,
}

/// What a bucket's runs are made of.
struct Prepared {
    bucket: Bucket,
    place: StagingLayout,
    /// In the order of the nodes that they belong to.
    launches: Vec<(NodeId, Launch)>,
    /// What chooses tokens from the results of `launches`.
    choose: Vec<Launch>,
    recorded: Option<CapturedGraph>,
}

impl Prepared {
    /// Launch by launch.
    fn enqueue(&self, stream: &Stream) -> Result<()> {
        let mut all = self.launches.iter().map(|(_, launch)| launch).chain(&self.choose);
        all.try_for_each(|launch| launch.enqueue(stream))
    }
}

impl CudaProgram {
    /// Allocates, uploads, prepares and records. Errors: out of memory, an operation that no kernel takes, the driver's.
    pub fn new(
        shared: Arc<Shared>,
        plan: Plan,
        buckets: &[Bucket],
        tensors: &[HostTensor],
        states: Vec<Arc<DeviceBuffer>>,
    ) -> Result<CudaProgram> {
        let device = shared.cuda.device();
        let name = &plan.graph.name;
        // Everything is allocated before anything is uploaded: what does not fit is known in no time.
        let places: Vec<StagingLayout> =
            buckets.iter().map(|b| StagingLayout::new(&plan.graph, &b.sizes, &plan.layout)).collect();
        let staging = Staging::new(&shared.stream, name, places.iter().map(StagingLayout::bytes).max().unwrap_or(0))?;
        let arena = device.alloc(&format!("values of the {name}"), plan.arena_bytes)?;
        let results_bytes = plan.graph.outputs.iter().map(|o| plan.graph.node(*o).ty.shape.elements(&plan.bucket) * 4);
        let results_bytes = results_bytes.max().unwrap_or(0).max(chooser::result_bytes(&plan.graph, buckets));
        let results = PinnedBuffer::new(device, &format!("results of the {name}"), results_bytes)?;
        let chooser = Chooser::new(&shared, &plan.graph, buckets)?;
        let scratch = Scratch::new(&shared, &plan, buckets)?;
        let weights = Weights::alloc(device, &plan.graph)?;
        weights.fill(&plan.graph, tensors, shared.dtype)?;

        let mut prepared = Vec::with_capacity(buckets.len());
        for (bucket, place) in buckets.iter().zip(places) {
            let lowering = Lowering {
                shared: &shared,
                plan: &plan,
                bucket,
                place: &place,
                arena: &arena,
                staging: &staging,
                scratch: &scratch,
                weights: &weights,
                states: &states,
            };
            let launches = lowering.launches()?;
            let choose = match (&chooser, chooser::logits_of(&plan.graph, &bucket.sizes)) {
                (Some(chooser), Some(logits)) => {
                    let at = plan.place(logits.node).ok_or_else(|| Error::Internal(format!("{name}: no logits")))?;
                    let values = arena.slice(at.offset, logits.rows * logits.vocab * 4)?;
                    chooser.launches(&shared.cuda, logits, values, &staging, &place)?
                }
                _ => Vec::new(),
            };
            prepared.push(Prepared { bucket: *bucket, place, launches, choose, recorded: None });
        }
        let mut program = CudaProgram {
            sizes: Sizes::default(),
            buckets: prepared,
            staging,
            arena,
            results,
            chooser,
            row_inputs: row_inputs(&plan.graph),
            _scratch: scratch,
            _weights: weights,
            _states: states,
            plan,
            shared,
        };
        program.record()?;
        Ok(program)
    }

    /// Records decode buckets, the largest first: what they share is then as large as it gets.
    fn record(&mut self) -> Result<()> {
        if !self.shared.capture {
            return Ok(());
        }
        let decode: Vec<usize> = (0..self.buckets.len()).filter(|i| self.buckets[*i].bucket.decode).collect();
        for i in decode.into_iter().rev() {
            // A step of no tokens loads every kernel: while a stream records, the driver can load nothing.
            self.send_nothing(i)?;
            let stream = &self.shared.stream;
            let prepared = &mut self.buckets[i];
            prepared.enqueue(stream)?;
            stream.synchronize()?;
            prepared.recorded = Some(CapturedGraph::capture(stream, || prepared.enqueue(stream))?);
        }
        Ok(())
    }

    /// Arrays of a step without tokens, for bucket `i`.
    fn send_nothing(&mut self, i: usize) -> Result<()> {
        let graph = &self.plan.graph;
        let sizes = self.buckets[i].bucket.sizes;
        let none = [Sym::Tokens, Sym::Seqs, Sym::LogitRows, Sym::Patches, Sym::Images, Sym::ContextRows]
            .into_iter()
            .fold(sizes, |s, sym| s.with(sym, 0));
        let zeros = vec![0i32; graph.inputs().map(|(_, n)| n.ty.shape.elements(&none)).max().unwrap_or(0)];
        let inputs: Vec<Input> = graph
            .inputs()
            .map(|(_, n)| match n.ty.kind {
                Kind::Int => Input::Int(&zeros[..n.ty.shape.elements(&none)]),
                Kind::Float => Input::Float(&[]),
                Kind::Byte => Input::Byte(&[]),
            })
            .collect();
        let Shared { stream, dtype, .. } = &*self.shared;
        self.staging.send(&self.plan, &self.buckets[i].place, *dtype, (&none, &inputs, None), stream)
    }

    /// The smallest bucket that holds a run. Steps of one token a sequence, the next of each wanted in the same order,
    /// have buckets of their own.
    fn bucket_for(&self, sizes: &Sizes, in_order: bool) -> Result<usize> {
        let [tokens, seqs, logits] = [Sym::Tokens, Sym::Seqs, Sym::LogitRows].map(|s| sizes.get(s));
        let decode = tokens == seqs && tokens == logits && in_order;
        let symbols =
            [Sym::Tokens, Sym::Seqs, Sym::LogitRows, Sym::Patches, Sym::Images, Sym::ContextRows, Sym::Blocks];
        let fits = |b: &Bucket| (decode || !b.decode) && symbols.iter().all(|s| sizes.get(*s) <= b.sizes.get(*s));
        self.buckets.iter().position(|p| fits(&p.bucket)).ok_or_else(|| {
            Error::Internal(format!(
                "{}: a run of {sizes:?} is larger than {:?}",
                self.plan.graph.name, self.plan.bucket
            ))
        })
    }

    /// Whether layers that choose rows of their input choose all of them in order, as far as there are.
    fn in_order(&self, inputs: &[Input]) -> bool {
        self.row_inputs.iter().all(|i| match inputs.get(*i) {
            Some(Input::Int(rows)) => rows.iter().enumerate().all(|(i, row)| *row == i as i32),
            _ => false,
        })
    }

    /// Sends a run's arrays; says which bucket's launches are for it.
    fn send(&mut self, sizes: &Sizes, inputs: &[Input], rows: Option<&SamplingBatch>) -> Result<usize> {
        let bucket = self.bucket_for(sizes, self.in_order(inputs))?;
        self.sizes = *sizes;
        let Shared { stream, dtype, .. } = &*self.shared;
        self.staging.send(&self.plan, &self.buckets[bucket].place, *dtype, (sizes, inputs, rows), stream)?;
        Ok(bucket)
    }

    /// Puts the launches of a bucket into the stream.
    fn start(&mut self, bucket: usize) -> Result<()> {
        let (prepared, stream) = (&mut self.buckets[bucket], &self.shared.stream);
        match &mut prepared.recorded {
            Some(graph) => graph.launch(stream),
            None => prepared.enqueue(stream),
        }
    }

    /// Runs launch by launch and shows every value.
    fn run_probed(&mut self, bucket: usize, sizes: &Sizes, probe: &mut Probe) -> Result<()> {
        let Shared { stream, dtype, .. } = &*self.shared;
        let Plan { graph, layout, .. } = &self.plan;
        let mut launches = self.buckets[bucket].launches.iter().peekable();
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for (i, node) in graph.nodes.iter().enumerate() {
            let id = NodeId(i as u32);
            while let Some((_, launch)) = launches.next_if(|(of, _)| *of == id) {
                launch.enqueue(stream)?;
                stream.synchronize().map_err(|e| lower::at(node, e))?;
            }
            let Some(place) = self.plan.place(id) else { continue };
            let shape = node.ty.shape.eval(sizes);
            values.clear();
            let size = node.ty.shape.elements(sizes);
            if graph.outputs.contains(&id) {
                bytes.resize(size * 4, 0);
                self.arena.slice(place.offset, bytes.len())?.copy_to_host(stream, &mut bytes)?;
                values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)));
            } else {
                let cols = shape.last().copied().unwrap_or(1).max(1);
                let stride = layout.stride(cols);
                bytes.resize(size / cols * stride * dtype.size(), 0);
                self.arena.slice(place.offset, bytes.len())?.copy_to_host(stream, &mut bytes)?;
                widen(*dtype, &bytes, cols, stride, &mut values);
            }
            probe(node, &shape, &mut values)?;
        }
        Ok(())
    }
}

/// The inputs, by their order in the graph, by which layers choose rows of another value.
fn row_inputs(graph: &Graph) -> Vec<usize> {
    let chooses = |id: NodeId| {
        graph.nodes.iter().any(|n| matches!(n.op, Op::NormLinear { gathered: true, .. }) && n.inputs[1] == id)
    };
    graph.inputs().enumerate().filter(|(_, (id, _))| chooses(*id)).map(|(i, _)| i).collect()
}

impl Program for CudaProgram {
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], probe: Option<&mut Probe>) -> Result<()> {
        let bucket = self.send(sizes, inputs, None)?;
        match probe {
            Some(probe) => self.run_probed(bucket, sizes, probe),
            None => self.start(bucket),
        }
    }

    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> Result<()> {
        let graph = &self.plan.graph;
        let output = graph.outputs.get(index).copied();
        let place = output.and_then(|id| Some((id, self.plan.place(id)?)));
        let (id, place) = place.ok_or_else(|| Error::Internal(format!("{}: no output {index}", graph.name)))?;
        let bytes = graph.node(id).ty.shape.elements(&self.sizes) * 4;
        into.clear();
        if bytes == 0 {
            return Ok(());
        }
        let stream = &self.shared.stream;
        // SAFETY: the stream is waited for before the bytes are read.
        unsafe { self.results.copy_from_device(&self.arena.slice(place.offset, bytes)?, stream)? };
        stream.synchronize()?;
        into.extend(self.results.as_slice()[..bytes].as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)));
        Ok(())
    }

    fn sampling(&self) -> Option<SamplingLimits> {
        self.chooser.as_ref().map(|_| chooser::LIMITS)
    }

    fn sample(&mut self, sizes: &Sizes, inputs: &[Input], rows: &SamplingBatch, into: &mut Choices) -> Result<()> {
        let bucket = self.send(sizes, inputs, Some(rows))?;
        self.start(bucket)?;
        let none = || Error::Internal(format!("{}: no tokens are chosen here", self.plan.graph.name));
        let chooser = self.chooser.as_ref().ok_or_else(none)?;
        let most = self.buckets[bucket].bucket.sizes.get(Sym::LogitRows);
        chooser.read(&self.shared, &mut self.results, most, rows, into)
    }

    fn launches(&self, sizes: &Sizes) -> Result<Option<usize>> {
        let Prepared { launches, choose, .. } = &self.buckets[self.bucket_for(sizes, true)?];
        Ok(Some(launches.len() + choose.len()))
    }
}

impl Drop for CudaProgram {
    /// Memory that the GPU copies from or to must outlive the copies, also after an error.
    fn drop(&mut self) {
        let _ = self.shared.stream.synchronize();
    }
}
