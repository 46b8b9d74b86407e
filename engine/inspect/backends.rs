//! Compares a device with the CPU, node by node on the same inputs, and names the first node out of tolerance.
//!
//! In: whatever an engine runs. Out: a report. Every run goes through the device first; then the CPU, which is the
//! specification, computes each node from the values that the device had for its inputs. So an error shows at the node
//! that makes it, and nowhere else. Owns: the tolerances of a node. Not here: comparing with a file (`compare.rs`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Bucket, DeviceInfo, Input, Needs, Probe, Program, WeightHandle};
use crate::checkpoint::storage::convert;
use crate::graph::fuse::{self, Fusion};
use crate::graph::{Graph, Layout, Node, Op, Plan, Sizes, plan};
use crate::run::engine::BackendWrapper;
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// One node, over all runs.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRow {
    pub graph: String,
    pub name: String,
    pub op: &'static str,
    /// Times it was compared.
    pub runs: usize,
    /// Largest difference, as a part of what is allowed; above 1 it is out of tolerance.
    pub error: f32,
    /// Where: run, element, both values.
    pub worst: String,
}

/// A comparison in progress; clones share it.
#[derive(Clone, Default)]
pub struct BackendComparison {
    inner: Arc<Mutex<Found>>,
}

#[derive(Default)]
struct Found {
    devices: String,
    rows: Vec<NodeRow>,
    /// By graph and node.
    index: HashMap<(String, String), usize>,
    /// The node that was first out of tolerance, in the order of the runs.
    first: Option<usize>,
}

impl BackendComparison {
    /// For [`crate::run::engine::EngineOptions::wrap`].
    pub fn wrapper(&self) -> BackendWrapper {
        let comparison = self.clone();
        Box::new(move |device| comparison.wrap(device))
    }

    /// The device beside a CPU.
    pub fn wrap(&self, device: Box<dyn Backend>) -> Box<dyn Backend> {
        self.lock().devices = format!("{} against cpu", device.info().name);
        Box::new(Compared { device, cpu: CpuBackend::new(), handles: Vec::new(), comparison: self.clone() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found so far.
    pub fn report(&self) -> BackendReport {
        let found = self.lock();
        BackendReport {
            devices: found.devices.clone(),
            rows: found.rows.clone(),
            first: found.first.map(|i| found.rows[i].clone()),
        }
    }

    fn add(&self, graph: &str, node: &Node, got: &[f32], want: &[f32], limit: Limit) {
        let mut found = self.lock();
        let key = (graph.to_string(), node.name.clone());
        let next = found.rows.len();
        let at = *found.index.entry(key).or_insert(next);
        if at == next {
            let (graph, name) = (graph.to_string(), node.name.clone());
            let op = node.op.name();
            found.rows.push(NodeRow { graph, name, op, runs: 0, error: 0.0, worst: String::new() });
        }
        let row = &mut found.rows[at];
        row.runs += 1;
        if let Some((i, error)) = limit.worst(got, want)
            && error > row.error
        {
            row.error = error;
            row.worst = format!("run {}, element {i}: {}, expected {}", row.runs, got[i], want[i]);
        }
        if row.error > 1.0 && found.first.is_none() {
            found.first = Some(at);
        }
    }
}

/// What a node may differ by: `relative * |want| + of_rms * rms(want) + of_largest * max|want|`.
#[derive(Debug, Clone, Copy)]
struct Limit {
    relative: f32,
    of_rms: f32,
    of_largest: f32,
}

impl Limit {
    fn of(op: &Op, dtype: DType) -> Limit {
        // Half a unit in the last place, and a little for a tie that falls the other way.
        let half = match dtype {
            DType::F16 => 2f32.powi(-11) * 1.01,
            DType::Bf16 => 2f32.powi(-8) * 1.01,
            _ => 1e-5,
        };
        let limit = |of_rms: f32, of_largest: f32| Limit {
            relative: half,
            of_rms: of_rms * half,
            of_largest: of_largest * half,
        };
        match op {
            // Copies, and one rounding.
            Op::Embedding { .. }
            | Op::EmbedMerge { .. }
            | Op::GatherRows
            | Op::BroadcastRows { .. }
            | Op::ConcatSegments => limit(0.0, 0.0),
            Op::Add | Op::Mul => limit(0.01, 0.0),
            // Probabilities are rounded before they meet the values, whose size the result tells only roughly.
            Op::Attention(_) | Op::PagedAttention { .. } => limit(0.0, 4.0),
            // Several roundings within.
            Op::SelfAttention { .. } => limit(2.0, 8.0),
            Op::QkvRope { .. } | Op::NormLinear { .. } => limit(4.0, 0.0),
            // Weights are rounded with the normalisation in them, pixels not at all.
            Op::PatchEmbed { .. } => limit(4.0, 0.0),
            Op::GatedLinear { norm: Some(_), .. } => limit(8.0, 0.0),
            _ => limit(1.0, 0.0),
        }
    }

    /// The element that is furthest off, and how far as a part of what is allowed.
    fn worst(&self, got: &[f32], want: &[f32]) -> Option<(usize, f32)> {
        let mean = want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / want.len().max(1) as f64;
        let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let base = self.of_rms * mean.sqrt() as f32 + self.of_largest * largest + f32::MIN_POSITIVE;
        let error = |(g, w): (&f32, &f32)| match (g - w).abs() / (self.relative * w.abs() + base) {
            e if e.is_nan() && !(g.is_nan() && w.is_nan()) => f32::INFINITY,
            e => e,
        };
        let errors = got.iter().zip(want).map(error).enumerate();
        errors.fold(None, |worst, (i, e)| if worst.is_none_or(|(_, w)| e > w) { Some((i, e)) } else { worst })
    }
}

/// A device and the CPU.
struct Compared {
    device: Box<dyn Backend>,
    cpu: CpuBackend,
    /// The same weight on both.
    handles: Vec<(WeightHandle, WeightHandle)>,
    comparison: BackendComparison,
}

impl Backend for Compared {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn supports(&self, graph: &Graph, node: &Node) -> std::result::Result<(), String> {
        self.device.supports(graph, node)
    }

    fn upload(&mut self, name: &str, tensor: &HostTensor, matrix: bool) -> Result<WeightHandle> {
        let dtype = Some(self.device.info().activations).filter(|d| matrix && *d != DType::F32);
        let rounded = convert(name, tensor.clone(), dtype)?;
        let both = (self.device.upload(name, tensor, matrix)?, self.cpu.upload(name, &rounded, matrix)?);
        self.handles.push(both);
        Ok(WeightHandle(self.handles.len() as u32 - 1))
    }

    fn layout(&self) -> Layout {
        self.device.layout()
    }

    fn fusion(&self) -> Fusion {
        self.device.fusion()
    }

    fn needs(&self, plan: &Plan, buckets: &[Bucket]) -> Option<Needs> {
        self.device.needs(plan, buckets)
    }

    fn compile(&mut self, plan: Plan, buckets: &[Bucket], weights: &[WeightHandle]) -> Result<Box<dyn Program>> {
        let (device, cpu): (Vec<_>, Vec<_>) = weights.iter().map(|w| self.handles[w.0 as usize]).unzip();
        let graph = plan.graph.name.clone();
        // Node by node in primitives; a fused operation's last one has its name.
        let reference = plan::plan(fuse::expand(&plan.graph)?, plan.bucket, self.cpu.layout(), true);
        Ok(Box::new(ComparedProgram {
            graph,
            dtype: self.device.info().activations,
            device: self.device.compile(plan, buckets, &device)?,
            cpu: self.cpu.compile(reference, buckets, &cpu)?,
            comparison: self.comparison.clone(),
        }))
    }
}

struct ComparedProgram {
    graph: String,
    dtype: DType,
    device: Box<dyn Program>,
    cpu: Box<dyn Program>,
    comparison: BackendComparison,
}

impl Program for ComparedProgram {
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], mut probe: Option<&mut Probe>) -> Result<()> {
        let mut values: HashMap<String, (Limit, Vec<f32>)> = HashMap::new();
        let dtype = self.dtype;
        self.device.run(
            sizes,
            inputs,
            Some(&mut |node, shape, v| {
                values.insert(node.name.clone(), (Limit::of(&node.op, dtype), v.to_vec()));
                probe.as_mut().map_or(Ok(()), |probe| probe(node, shape, v))
            }),
        )?;
        // The CPU starts from the floats that the device was given.
        let rounded: Vec<Option<Vec<f32>>> = inputs
            .iter()
            .map(|input| match input {
                Input::Float(x) => Some(x.iter().map(|v| round(self.dtype, *v)).collect()),
                Input::Int(_) | Input::Byte(_) => None,
            })
            .collect();
        let inputs: Vec<Input> =
            inputs.iter().zip(&rounded).map(|(i, r)| r.as_ref().map_or(*i, |r| Input::Float(r))).collect();
        let (graph, comparison) = (&self.graph, &self.comparison);
        self.cpu.run(
            sizes,
            &inputs,
            Some(&mut |node, _, want| {
                // Steps within a fused operation have no value on the device.
                let Some((limit, got)) = values.remove(&node.name) else { return Ok(()) };
                if got.len() != want.len() {
                    return Err(Error::Internal(format!("{}: {} values for {}", node.name, got.len(), want.len())));
                }
                comparison.add(graph, node, &got, want, limit);
                // What comes after starts from the device's value.
                want.copy_from_slice(&got);
                Ok(())
            }),
        )
    }

    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> Result<()> {
        self.device.read(index, into)
    }
}

fn round(dtype: DType, v: f32) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(v).to_f32(),
        DType::Bf16 => half::bf16::from_f32(v).to_f32(),
        _ => v,
    }
}

/// The outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendReport {
    pub devices: String,
    /// In the order in which nodes first ran.
    pub rows: Vec<NodeRow>,
    /// The first node out of tolerance.
    pub first: Option<NodeRow>,
}

impl fmt::Display for BackendReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for r in &self.rows {
            let mark = if r.error > 1.0 { "DIFFERS" } else { "ok" };
            write!(f, "{mark:8} {:7.3} of the tolerance  {} {} ({})", r.error, r.graph, r.name, r.op)?;
            writeln!(f, "{}", if r.error > 1.0 { format!(", {}", r.worst) } else { String::new() })?;
        }
        match &self.first {
            Some(r) => write!(f, "{}: first difference: {} {} ({})", self.devices, r.graph, r.name, r.op),
            None => write!(f, "{}: {} nodes compared, all within tolerance", self.devices, self.rows.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_operation() {
        let limit = Limit::of(&Op::Add, DType::Bf16);
        let want = [1.0, -2.0, 0.5];
        assert!(limit.worst(&[1.0039, -2.0, 0.5], &want).unwrap().1 <= 1.0);
        assert_eq!(limit.worst(&[1.0, -2.02, 0.5], &want).map(|(i, e)| (i, e > 1.0)), Some((1, true)));
        assert_eq!(limit.worst(&[1.0, -2.0, f32::NAN], &want).unwrap(), (2, f32::INFINITY));
        assert_eq!(Limit::of(&Op::GatherRows, DType::F16).worst(&want, &want).unwrap().1, 0.0);
        assert!(limit.worst(&[], &[]).is_none());
    }
}
