//! CUDA graphs: a sequence of launches recorded once and started as one.
//!
//! In: a stream and what to put into it. Out: a graph to launch. Owns: the executable graph. Not here: which launches.

use std::sync::Arc;

use super::{Device, Stream, failed, result, sys};
use crate::Result;

/// Recorded work. Addresses in it must stay allocated as long as it is launched.
#[derive(Debug)]
pub struct CapturedGraph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
}

// SAFETY: launched from one thread at a time, as `&mut self` says.
unsafe impl Send for CapturedGraph {}

impl CapturedGraph {
    /// Records what `work` puts into the stream; nothing of it runs. Functions launched in it must have been launched
    /// before, as a driver may load them late and cannot while it records.
    pub fn capture(stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<CapturedGraph> {
        let device = stream.device().clone();
        device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { result::stream::begin_capture(stream.stream, mode) }.map_err(|e| failed("recording a graph", e))?;
        let worked = work();
        // Recording ends in any case: a stream that still records can do nothing else.
        // SAFETY: the stream records, as begun above.
        let ended = unsafe { result::stream::end_capture(stream.stream) }.map_err(|e| failed("recording a graph", e));
        let graph = match (worked, ended) {
            (Ok(()), Ok(graph)) => graph,
            (Err(error), ended) => {
                if let Ok(graph) = ended {
                    // SAFETY: the driver gave it just now. A failure loses a few bytes beside an error that is told.
                    let _ = unsafe { result::graph::destroy(graph) };
                }
                return Err(error);
            }
            (Ok(()), Err(error)) => return Err(error),
        };
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph came from the driver and is destroyed once; the executable one is a copy.
        let made = unsafe { result::graph::instantiate(graph, flags) }.map_err(|e| failed("preparing a graph", e));
        // SAFETY: as above.
        let destroyed = unsafe { result::graph::destroy(graph) }.map_err(|e| failed("preparing a graph", e));
        let captured = CapturedGraph { device, executable: made? };
        destroyed.map(|()| captured)
    }

    /// Puts all of it into the stream.
    pub fn launch(&mut self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live.
        unsafe { result::graph::launch(self.executable, stream.stream) }.map_err(|e| failed("launching a graph", e))
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // Where this fails the next call does too.
        let _ = self.device.bind();
        // SAFETY: instantiated in capture and destroyed once; the driver finishes running launches first.
        let _ = unsafe { result::graph::exec_destroy(self.executable) };
    }
}
