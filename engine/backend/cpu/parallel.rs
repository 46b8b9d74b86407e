//! Work spread over rayon's threads.
//!
//! In: an output array and a task for each part of it. Out: nothing but the writes. Owns: the thresholds below
//! which a loop stays on its thread, and [`SharedRows`]. Not here: arithmetic.

use std::marker::PhantomData;

use rayon::prelude::*;

/// Elements of element-wise work worth a task.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Runs `f(first row, rows of y)` over blocks of rows, in parallel when there are enough elements.
/// `y` is `[rows, width]`.
pub(super) fn for_row_blocks(y: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    if width == 0 || y.is_empty() {
        return;
    }
    let rows = (TASK_ELEMENTS / width).max(1);
    if y.len() <= rows * width {
        return f(0, y);
    }
    y.par_chunks_mut(rows * width).enumerate().for_each(|(i, block)| f(i * rows, block));
}

/// Runs `f(task)` for each task below `count`; on this thread where there is but one.
pub(super) fn for_tasks(count: usize, f: impl Fn(usize) + Send + Sync) {
    if count <= 1 || rayon::current_num_threads() == 1 {
        (0..count).for_each(f);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(f);
    }
}

/// A row-major array whose disjoint pieces several threads write.
pub(super) struct SharedRows<'a> {
    start: *mut f32,
    len: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: only a pointer into a slice borrowed for 'a; `piece` leaves disjointness to its caller.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// Rows of `width` elements.
    pub fn new(y: &'a mut [f32], width: usize) -> SharedRows<'a> {
        SharedRows { start: y.as_mut_ptr(), len: y.len(), width, borrow: PhantomData }
    }

    /// `len` elements of `row` from column `col` on.
    ///
    /// # Safety
    /// No other live piece overlaps it.
    #[allow(clippy::mut_from_ref)] // Disjointness is the caller's promise.
    pub unsafe fn piece(&self, row: usize, col: usize, len: usize) -> &mut [f32] {
        let at = row * self.width + col;
        assert!(at + len <= self.len && col + len <= self.width);
        // SAFETY: in bounds by the assertion; unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
