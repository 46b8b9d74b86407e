//! From samples to rows of RGB.
//!
//! In: the samples of rows of MCUs in order. Out: finished rows of a band of the image. Owns: which sample rows an image
//! row needs, across the border of two batches too. Not here: transforming blocks (`idct.rs`), the arithmetic of a row
//! (`upsample.rs`, `color.rs`).

use super::color::{self, ColorModel};
use super::idct;
use super::upsample::{Upsampling, expand};
use super::{Component, Frame};

/// Samples of some rows of MCUs: a plane a component, `blocks_w * 8` samples a row.
pub(super) type Samples = Vec<Vec<u8>>;

/// Samples for `rows` rows of MCUs, grey.
pub(super) fn grey(frame: &Frame, rows: usize) -> Samples {
    frame.components.iter().map(|c| vec![128; c.blocks_w * 8 * c.v * 8 * rows]).collect()
}

/// Sample rows of the previous batch that upsampling may still need.
const KEPT: usize = 2;

/// Renders the rows `[from, to)` of an image into `out`.
///
/// Rows of MCUs come in order, without gaps, from the one above the band (where there is one) to the one below it.
pub(super) struct Renderer<'a> {
    frame: &'a Frame,
    model: ColorModel,
    planes: Vec<Plane>,
    /// The next row to write, and the end of the band.
    next: usize,
    to: usize,
    from: usize,
    out: &'a mut [u8],
    vector: bool,
}

/// What stays of one component between batches, and its scratch memory.
struct Plane {
    stride: usize,
    /// The last rows of the previous batch.
    kept: Vec<u8>,
    upsampling: Upsampling,
    /// An upsampled row, where upsampling is needed.
    row: Vec<u8>,
    /// Column sums of two-dimensional upsampling.
    sums: Vec<u16>,
}

impl Plane {
    fn new(frame: &Frame, component: &Component) -> Option<Plane> {
        let upsampling = Upsampling::new(frame.max_h, frame.max_v, component)?;
        let stride = component.blocks_w * 8;
        let needs_row = upsampling != Upsampling::None;
        Some(Plane {
            stride,
            kept: vec![0; KEPT * stride],
            upsampling,
            row: vec![0; if needs_row { stride * (frame.max_h / component.h) } else { 0 }],
            sums: vec![0; if needs_row { stride + 2 } else { 0 }],
        })
    }
}

/// The part of a component's row `at` that holds samples; rows outside the image repeat its edge. `batch` starts with
/// row `first`, in front of it lie the `kept` rows.
fn samples_at<'s>(kept: &'s [u8], batch: &'s [u8], first: usize, component: &Component, at: isize) -> &'s [u8] {
    let at = at.clamp(0, component.height as isize - 1) as usize;
    let stride = component.blocks_w * 8;
    let (rows, row) = if at >= first { (batch, at - first) } else { (kept, (at + KEPT).saturating_sub(first)) };
    &rows[row * stride..][..component.width]
}

impl<'a> Renderer<'a> {
    /// None where a component's sampling cannot be upsampled in whole steps.
    pub fn new(frame: &'a Frame, model: ColorModel, from: usize, to: usize, out: &'a mut [u8]) -> Option<Renderer<'a>> {
        let planes = frame.components.iter().map(|component| Plane::new(frame, component)).collect::<Option<_>>()?;
        Some(Renderer { frame, model, planes, next: from, from, to, out, vector: idct::has_vector_code() })
    }

    /// Takes `rows` rows of MCUs from row `first` on.
    pub fn push(&mut self, first: usize, rows: usize, samples: &Samples) {
        let frame = self.frame;
        let below = (first + rows) * frame.max_v * 8;
        let ready = if first + rows == frame.mcus_y { self.to } else { self.to.min(below.saturating_sub(KEPT)) };
        let row_bytes = frame.width * 3;
        while self.next < ready {
            let at = (self.next - self.from) * row_bytes;
            let out = &mut self.out[at..at + row_bytes];
            let is_upper = self.next.is_multiple_of(2);
            let mut full: [&[u8]; 4] = [&[]; 4];
            for (((plane, component), batch), full) in
                self.planes.iter_mut().zip(&frame.components).zip(samples).zip(&mut full)
            {
                let y = (self.next * component.v / frame.max_v) as isize;
                let row = |at: isize| samples_at(&plane.kept, batch, first * component.v * 8, component, at);
                let near = row(y);
                if plane.upsampling == Upsampling::None {
                    *full = near;
                    continue;
                }
                // Only the vertical filter looks at a neighbouring row.
                let far = match plane.upsampling {
                    Upsampling::Down | Upsampling::Both if is_upper => row(y - 1),
                    Upsampling::Down | Upsampling::Both => row(y + 1),
                    _ => near,
                };
                expand(plane.upsampling, near, far, is_upper, &mut plane.sums, &mut plane.row, self.vector);
                *full = &plane.row;
            }
            color::row(self.model, full, out, self.vector);
            self.next += 1;
        }
        for ((plane, component), batch) in self.planes.iter_mut().zip(&frame.components).zip(samples) {
            let end = rows * component.v * 8 * plane.stride;
            plane.kept.copy_from_slice(&batch[end - KEPT * plane.stride..end]);
        }
    }
}
