//! Recorded work: graphs from capture or built by hand, executable graphs, updates.
//! In: operations. Out: the same operations, run in recorded order. Owns: nodes.
//! Not here: which stream records (`stream`). Recorded order is one of the orders the dependencies allow.

use super::*;
use crate::gpu::Shape;
use std::ffi::c_void;

/// One operation.
#[derive(Clone)]
pub enum Op {
    Kernel { function: u64, shape: Shape, params: Vec<u8> },
    Copy { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, value: u32, width: u32, n: u64 },
    Host { f: unsafe extern "C" fn(*mut c_void), argument: u64 },
    Empty,
}

/// Nodes in order; an executable graph is a copy.
#[derive(Clone, Default)]
pub struct Graph {
    nodes: Vec<(u64, Op)>,
}

impl Graph {
    /// Appends an operation.
    pub fn push(&mut self, op: Op) {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0x5048_0000_0000);
        let h = NEXT.fetch_add(16, std::sync::atomic::Ordering::Relaxed);
        self.nodes.push((h, op));
    }
}

/// CUDA_KERNEL_NODE_PARAMS (v2 has two more words behind these).
#[repr(C)]
pub struct KernelParams {
    function: u64,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: *const *const c_void,
    extra: *const *const c_void,
}

/// CUDA_MEMSET_NODE_PARAMS.
#[repr(C)]
pub struct FillParams {
    to: u64,
    pitch: usize,
    value: u32,
    element: u32,
    width: usize,
    height: usize,
}

impl State {
    /// Runs an operation now.
    pub fn perform(&mut self, op: &Op) -> Result<(), Status> {
        match op {
            Op::Kernel { function, shape, params } => self.run_kernel(*function, *shape, params),
            Op::Copy { to, from, bytes } => self.copy(*to, *from, *bytes, "cuMemcpyAsync"),
            Op::Fill { to, value, width, n } => self.fill(*to, *value, *width, *n),
            // SAFETY: the caller's function and argument.
            Op::Host { f, argument } => unsafe {
                f(*argument as *mut c_void);
                Ok(())
            },
            Op::Empty => Ok(()),
        }
    }

    unsafe fn kernel_op(&self, p: *const KernelParams) -> Result<Op, Status> {
        let p = p.as_ref().ok_or(INVALID_VALUE)?;
        let k = &self.functions.get(&p.function).ok_or(INVALID_HANDLE)?.kernel;
        let mut params = vec![0u8; k.param_bytes as usize];
        if p.params.is_null() && !k.params.is_empty() {
            return Err(INVALID_VALUE);
        }
        for (n, q) in k.params.iter().enumerate() {
            let to = &mut params[q.offset as usize..(q.offset + q.bytes) as usize];
            std::ptr::copy_nonoverlapping((*p.params.add(n)).cast(), to.as_mut_ptr(), to.len());
        }
        let shape = Shape { grid: p.grid, block: p.block, shared: p.shared };
        Ok(Op::Kernel { function: p.function, shape, params })
    }

    fn add(&mut self, graph: u64, op: Op) -> Result<u64, Status> {
        let g = self.graphs.get_mut(&graph).ok_or(INVALID_HANDLE)?;
        g.push(op);
        Ok(g.nodes.last().map_or(0, |n| n.0))
    }

    fn instantiate(&mut self, graph: u64) -> Result<u64, Status> {
        let g = self.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        let h = self.handle();
        self.executables.insert(h, g);
        Ok(h)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphCreate(to: *mut u64, _flags: u32) -> Status {
    entry!("cuGraphCreate");
    call(|s| {
        let h = s.handle();
        s.graphs.insert(h, Graph::default());
        put(to, h)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphClone(to: *mut u64, graph: u64) -> Status {
    entry!("cuGraphClone");
    call(|s| {
        let g = s.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        let h = s.handle();
        s.graphs.insert(h, g);
        put(to, h)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: u64) -> Status {
    entry!("cuGraphDestroy");
    call_always(|s| s.graphs.remove(&graph).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(to: *mut u64, graph: u64, _flags: u64) -> Status {
    entry!("cuGraphInstantiateWithFlags");
    call(|s| s.instantiate(graph).and_then(|h| put(to, h)))
}

/// The older form with a log buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiate_v2(
    to: *mut u64,
    graph: u64,
    _node: *mut u64,
    _log: *mut c_char,
    _n: usize,
) -> Status {
    entry!("cuGraphInstantiate_v2");
    cuGraphInstantiateWithFlags(to, graph, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithParams(to: *mut u64, graph: u64, _params: *mut c_void) -> Status {
    entry!("cuGraphInstantiateWithParams");
    cuGraphInstantiateWithFlags(to, graph, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(exec: u64) -> Status {
    entry!("cuGraphExecDestroy");
    call_always(|s| s.executables.remove(&exec).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphUpload(exec: u64, _stream: u64) -> Status {
    entry!("cuGraphUpload");
    call(|s| s.executables.get(&exec).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(exec: u64, stream: u64) -> Status {
    entry!("cuGraphLaunch");
    call(|s| {
        let g = s.executables.get(&exec).ok_or(INVALID_HANDLE)?.clone();
        for (_, op) in g.nodes {
            // Launching a graph while capturing records its nodes.
            s.enqueue(stream, op)?;
        }
        Ok(())
    })
}

/// CUgraphExecUpdateResultInfo.
#[repr(C)]
pub struct UpdateInfo {
    result: u32,
    error_node: u64,
    error_from: u64,
}

/// The new graph must have the same kinds of nodes in the same order.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecUpdate_v2(exec: u64, graph: u64, info: *mut UpdateInfo) -> Status {
    entry!("cuGraphExecUpdate_v2");
    call(|s| {
        let new = s.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        let old = s.executables.get_mut(&exec).ok_or(INVALID_HANDLE)?;
        let kind = |n: &(u64, Op)| std::mem::discriminant(&n.1);
        let same =
            old.nodes.len() == new.nodes.len() && old.nodes.iter().zip(&new.nodes).all(|(a, b)| kind(a) == kind(b));
        if !info.is_null() {
            // CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED is 2.
            put(info, UpdateInfo { result: if same { 0 } else { 2 }, error_node: 0, error_from: 0 })?;
        }
        if !same {
            return Err(UPDATE_FAILURE);
        }
        // Nodes keep their handles, so that later updates of single nodes still find them.
        for (o, n) in old.nodes.iter_mut().zip(new.nodes) {
            o.1 = n.1;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphGetNodes(graph: u64, nodes: *mut u64, n: *mut usize) -> Status {
    entry!("cuGraphGetNodes");
    call(|s| {
        let g = s.graphs.get(&graph).ok_or(INVALID_HANDLE)?;
        if !nodes.is_null() {
            let most = *n;
            for (i, node) in g.nodes.iter().take(most).enumerate() {
                nodes.add(i).write(node.0);
            }
        }
        put(n, g.nodes.len())
    })
}

fn find(s: &mut State, node: u64) -> Result<&mut Op, Status> {
    s.graphs.values_mut().flat_map(|g| &mut g.nodes).find(|n| n.0 == node).map(|n| &mut n.1).ok_or(INVALID_HANDLE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphNodeGetType(node: u64, kind: *mut i32) -> Status {
    entry!("cuGraphNodeGetType");
    call(|s| {
        let k = match find(s, node)? {
            Op::Kernel { .. } => 0,
            Op::Copy { .. } => 1,
            Op::Fill { .. } => 2,
            Op::Host { .. } => 3,
            Op::Empty => 5,
        };
        put(kind, k)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddKernelNode_v2(
    to: *mut u64,
    graph: u64,
    _after: *const u64,
    _n: usize,
    p: *const KernelParams,
) -> Status {
    entry!("cuGraphAddKernelNode_v2");
    call(|s| {
        let op = s.kernel_op(p)?;
        s.add(graph, op).and_then(|h| put(to, h))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddEmptyNode(to: *mut u64, graph: u64, _after: *const u64, _n: usize) -> Status {
    entry!("cuGraphAddEmptyNode");
    call(|s| s.add(graph, Op::Empty).and_then(|h| put(to, h)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddMemsetNode(
    to: *mut u64,
    graph: u64,
    _after: *const u64,
    _n: usize,
    p: *const FillParams,
    _ctx: u64,
) -> Status {
    entry!("cuGraphAddMemsetNode");
    call(|s| {
        let p = p.as_ref().ok_or(INVALID_VALUE)?;
        if p.height > 1 || !matches!(p.element, 1 | 2 | 4) {
            return Err(NOT_SUPPORTED);
        }
        let op = Op::Fill { to: p.to, value: p.value, width: p.element, n: p.width as u64 };
        s.add(graph, op).and_then(|h| put(to, h))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphKernelNodeSetParams_v2(node: u64, p: *const KernelParams) -> Status {
    entry!("cuGraphKernelNodeSetParams_v2");
    call(|s| {
        let op = s.kernel_op(p)?;
        *find(s, node)? = op;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecKernelNodeSetParams_v2(exec: u64, node: u64, p: *const KernelParams) -> Status {
    entry!("cuGraphExecKernelNodeSetParams_v2");
    call(|s| {
        let op = s.kernel_op(p)?;
        let g = s.executables.get_mut(&exec).ok_or(INVALID_HANDLE)?;
        let n = g.nodes.iter_mut().find(|n| n.0 == node).ok_or(INVALID_HANDLE)?;
        n.1 = op;
        Ok(())
    })
}
