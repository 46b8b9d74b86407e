//! Work memory that is allocated once and kept by its thread.
//!
//! In: a length. Out: a slice of f32 that starts on a cache line. Owns: the memory. Not here: what it is for.

/// One cache line.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A growing array of f32, aligned to cache lines. Contents are unspecified between uses.
#[derive(Default)]
pub(super) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// No memory yet.
    pub const fn new() -> Buffer {
        Buffer { lines: Vec::new() }
    }

    /// The first `len` elements; grows at most once for each larger `len`.
    pub fn slice(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0.0; 16]));
        }
        &mut bytemuck::cast_slice_mut::<Line, f32>(&mut self.lines)[..len]
    }
}
