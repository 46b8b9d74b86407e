//! Streams and events.
//! In: handles. Out: order, times. Owns: which stream records into which graph. Not here: the recorded work (`graph`).

use super::graph::Op;
use super::*;
use std::ffi::c_void;
use std::time::Instant;

/// A stream; work runs when it is enqueued.
#[derive(Default)]
pub struct Stream {
    /// The graph being captured.
    pub capture: Option<u64>,
    /// The stream whose capture this one joined; 0 for its own.
    pub origin: u64,
    /// Priority, flags.
    pub priority: i32,
    pub flags: u32,
}

/// An event.
#[derive(Default)]
pub struct Event {
    time: Option<Instant>,
    /// Recorded in a capture: the graph and the stream it began on.
    capture: Option<(u64, u64)>,
}

/// Legacy and per-thread default streams.
fn default_stream(h: u64) -> bool {
    h <= 2
}

impl State {
    /// The graph a stream captures into.
    pub fn capture_of(&self, stream: u64) -> Option<u64> {
        self.streams.get(&stream)?.capture
    }

    /// Runs an operation, or records it when the stream captures.
    pub fn enqueue(&mut self, stream: u64, op: Op) -> Result<(), Status> {
        if !default_stream(stream) && !self.streams.contains_key(&stream) {
            return Err(INVALID_HANDLE);
        }
        match self.capture_of(stream) {
            Some(g) => {
                self.graphs.get_mut(&g).ok_or(CAPTURE_INVALIDATED)?.push(op);
                Ok(())
            }
            None => self.perform(&op),
        }
    }
}

fn create(to: *mut u64, flags: u32, priority: i32) -> Status {
    call(|s| {
        let h = s.handle();
        s.streams.insert(h, Stream { flags, priority, ..Stream::default() });
        // SAFETY: the caller's pointer, checked for null.
        unsafe { put(to, h) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(to: *mut u64, flags: u32) -> Status {
    entry!("cuStreamCreate");
    create(to, flags, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut u64, flags: u32, priority: i32) -> Status {
    entry!("cuStreamCreateWithPriority");
    create(to, flags, priority)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: u64) -> Status {
    entry!("cuStreamDestroy_v2");
    call_always(|s| s.streams.remove(&stream).map(|_| ()).ok_or(INVALID_HANDLE))
}

fn settled(s: &State, stream: u64) -> Result<(), Status> {
    if default_stream(stream) {
        return Ok(());
    }
    match s.streams.get(&stream) {
        None => Err(INVALID_HANDLE),
        Some(x) if x.capture.is_some() => Err(CAPTURE_UNSUPPORTED),
        Some(_) => Ok(()),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: u64) -> Status {
    entry!("cuStreamQuery");
    call(|s| settled(s, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: u64) -> Status {
    entry!("cuStreamSynchronize");
    call(|s| settled(s, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) -> Status {
    entry!("cuStreamWaitEvent");
    call(|s| {
        let capture = s.events.get(&event).ok_or(INVALID_HANDLE)?.capture;
        if let (Some((g, origin)), Some(x)) = (capture, s.streams.get_mut(&stream)) {
            // The stream joins the capture the event belongs to.
            if x.capture.is_none() && origin != stream {
                (x.capture, x.origin) = (Some(g), origin);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetFlags(stream: u64, flags: *mut u32) -> Status {
    entry!("cuStreamGetFlags");
    call(|s| put(flags, s.streams.get(&stream).map_or(0, |x| x.flags)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetPriority(stream: u64, priority: *mut i32) -> Status {
    entry!("cuStreamGetPriority");
    call(|s| put(priority, s.streams.get(&stream).map_or(0, |x| x.priority)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetId(stream: u64, id: *mut u64) -> Status {
    entry!("cuStreamGetId");
    call(|_| put(id, stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCtx(_stream: u64, ctx: *mut u64) -> Status {
    entry!("cuStreamGetCtx");
    call(|_| put(ctx, context::current()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamAttachMemAsync(_stream: u64, _address: u64, _bytes: usize, _flags: u32) -> Status {
    entry!("cuStreamAttachMemAsync");
    call(|_| Ok(()))
}

type Callback = unsafe extern "C" fn(u64, Status, *mut c_void);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamAddCallback(
    stream: u64,
    f: Option<Callback>,
    argument: *mut c_void,
    _flags: u32,
) -> Status {
    entry!("cuStreamAddCallback");
    let r = call(|s| settled(s, stream));
    if let (SUCCESS, Some(f)) = (r, f) {
        f(stream, SUCCESS, argument);
    }
    r
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: u64, _mode: i32) -> Status {
    entry!("cuStreamBeginCapture_v2");
    call(|s| {
        if default_stream(stream) {
            return Err(CAPTURE_UNSUPPORTED);
        }
        if s.streams.get(&stream).ok_or(INVALID_HANDLE)?.capture.is_some() {
            return Err(INVALID_VALUE);
        }
        let g = s.handle();
        s.graphs.insert(g, graph::Graph::default());
        if let Some(x) = s.streams.get_mut(&stream) {
            (x.capture, x.origin) = (Some(g), 0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: u64, to: *mut u64) -> Status {
    entry!("cuStreamEndCapture");
    call(|s| {
        let x = s.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        if x.origin != 0 {
            return Err(NOT_CAPTURING);
        }
        let g = x.capture.take().ok_or(NOT_CAPTURING)?;
        for x in s.streams.values_mut().filter(|x| x.capture == Some(g)) {
            (x.capture, x.origin) = (None, 0);
        }
        put(to, g)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: u64, status: *mut i32) -> Status {
    entry!("cuStreamIsCapturing");
    call(|s| put(status, i32::from(s.capture_of(stream).is_some())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: u64,
    status: *mut i32,
    id: *mut u64,
    graph: *mut u64,
    _dependencies: *mut *const u64,
    n: *mut usize,
) -> Status {
    entry!("cuStreamGetCaptureInfo_v2");
    call(|s| {
        let g = s.capture_of(stream);
        put(status, i32::from(g.is_some()))?;
        for p in [id, graph] {
            if !p.is_null() {
                put(p, g.unwrap_or(0))?;
            }
        }
        if n.is_null() { Ok(()) } else { put(n, 0) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut i32) -> Status {
    entry!("cuThreadExchangeStreamCaptureMode");
    call(|_| put(mode, 0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(to: *mut u64, _flags: u32) -> Status {
    entry!("cuEventCreate");
    call(|s| {
        let h = s.handle();
        s.events.insert(h, Event::default());
        put(to, h)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: u64) -> Status {
    entry!("cuEventDestroy_v2");
    call_always(|s| s.events.remove(&event).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: u64, stream: u64) -> Status {
    entry!("cuEventRecord");
    call(|s| {
        let capture =
            s.streams.get(&stream).and_then(|x| Some((x.capture?, if x.origin == 0 { stream } else { x.origin })));
        let e = s.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        (e.time, e.capture) = (Some(Instant::now()), capture);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecordWithFlags(event: u64, stream: u64, _flags: u32) -> Status {
    entry!("cuEventRecordWithFlags");
    cuEventRecord(event, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: u64) -> Status {
    entry!("cuEventQuery");
    call(|s| s.events.get(&event).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: u64) -> Status {
    entry!("cuEventSynchronize");
    call(|s| s.events.get(&event).map(|_| ()).ok_or(INVALID_HANDLE))
}

/// Milliseconds of this computer's clock between two events: what the stand-in took, not what a GPU would.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, from: u64, to: u64) -> Status {
    entry!("cuEventElapsedTime");
    call(|s| {
        let at = |h: u64| s.events.get(&h).and_then(|e| e.time).ok_or(INVALID_HANDLE);
        put(ms, at(to)?.saturating_duration_since(at(from)?).as_secs_f32() * 1e3)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: *mut f32, from: u64, to: u64) -> Status {
    entry!("cuEventElapsedTime_v2");
    cuEventElapsedTime(ms, from, to)
}
