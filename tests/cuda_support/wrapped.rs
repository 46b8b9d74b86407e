//! A device with a test between it and the engine.
//!
//! In: a device. Out: the same one, whose plans are changed before they are compiled, whose programs are replaced, with
//! a second device that gets everything too. Not here: what a test looks for.
#![allow(dead_code, reason = "each test program uses a part")]

use std::sync::Arc;

use engine::backend::cuda::{Cuda, CudaBackend, CudaOptions};
use engine::backend::{Backend, Bucket, DeviceInfo, Needs, Program, WeightHandle};
use engine::graph::fuse::Fusion;
use engine::graph::{Graph, Layout, Node, Plan};
use engine::tensor::{DType, HostTensor};

/// What was compiled.
pub struct Compiled<'a> {
    pub plan: &'a Plan,
    pub buckets: &'a [Bucket],
    pub program: Box<dyn Program>,
    /// The second device's, of the same plan.
    pub second: Option<Box<dyn Program>>,
}

type Change = Box<dyn Fn(&mut Plan) + Send>;
type Replace = Box<dyn Fn(Compiled) -> Box<dyn Program> + Send>;

pub struct Wrapped {
    device: Box<dyn Backend>,
    second: Option<CudaBackend>,
    change: Change,
    replace: Replace,
    handles: Vec<(WeightHandle, Option<WeightHandle>)>,
}

impl Wrapped {
    pub fn new(device: Box<dyn Backend>) -> Wrapped {
        let replace: Replace = Box::new(|compiled| compiled.program);
        Wrapped { device, second: None, change: Box::new(|_| ()), replace, handles: Vec::new() }
    }

    /// Adds, where a type is named, the first GPU once more, launch by launch.
    pub fn with_eager(self, dtype: Option<DType>) -> Wrapped {
        Wrapped { second: dtype.map(eager), ..self }
    }

    pub fn change(self, change: impl Fn(&mut Plan) + Send + 'static) -> Wrapped {
        Wrapped { change: Box::new(change), ..self }
    }

    pub fn replace(self, replace: impl Fn(Compiled) -> Box<dyn Program> + Send + 'static) -> Wrapped {
        Wrapped { replace: Box::new(replace), ..self }
    }

    pub fn boxed(self) -> Box<dyn Backend> {
        Box::new(self)
    }
}

/// The first GPU, which records nothing.
pub fn eager(dtype: DType) -> CudaBackend {
    let options = CudaOptions { dtype, capture: false, batch_invariant: false };
    CudaBackend::new(Arc::new(Cuda::open(0).unwrap()), options).unwrap()
}

impl Backend for Wrapped {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), String> {
        self.device.supports(graph, node)
    }

    fn upload(&mut self, name: &str, tensor: &HostTensor, matrix: bool) -> engine::Result<WeightHandle> {
        let second = self.second.as_mut().map(|s| s.upload(name, tensor, matrix)).transpose()?;
        self.handles.push((self.device.upload(name, tensor, matrix)?, second));
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

    fn compile(
        &mut self,
        mut plan: Plan,
        buckets: &[Bucket],
        weights: &[WeightHandle],
    ) -> engine::Result<Box<dyn Program>> {
        (self.change)(&mut plan);
        let handles = |w: &WeightHandle| self.handles[w.0 as usize];
        let second: Vec<WeightHandle> = weights.iter().filter_map(|w| handles(w).1).collect();
        let first: Vec<WeightHandle> = weights.iter().map(|w| handles(w).0).collect();
        let second = self.second.as_mut().map(|s| s.compile(plan.clone(), buckets, &second)).transpose()?;
        let program = self.device.compile(plan.clone(), buckets, &first)?;
        Ok((self.replace)(Compiled { plan: &plan, buckets, program, second }))
    }
}
