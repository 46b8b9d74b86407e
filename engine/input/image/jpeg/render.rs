//! From coefficients to rows of RGB.
//!
//! In: rows of MCUs in order. Out: finished rows of a band of the image. Owns: the sliding window of samples, which
//! upsampling a component needs. Not here: entropy decoding, the arithmetic of a row (`upsample.rs`, `color.rs`).

use super::color::{self, ColorModel};
use super::idct;
use super::scan::Block;
use super::upsample::{Upsampling, expand};
use super::{Component, Frame};

/// Sample rows of the previous row of MCUs that upsampling may still need.
const KEPT: usize = 2;

/// Renders the rows `[from, to)` of an image into `out`.
///
/// Rows of MCUs come in order, without gaps, from the one above the band (where there is one) to the one below it.
pub(super) struct Renderer<'a> {
    frame: &'a Frame,
    model: ColorModel,
    windows: Vec<Window>,
    /// The next row to write, and the end of the band.
    next: usize,
    to: usize,
    from: usize,
    out: &'a mut [u8],
    vector: bool,
}

/// Samples of one component: some rows of the previous row of MCUs, then the current one.
struct Window {
    samples: Vec<u8>,
    stride: usize,
    /// Row of the component that `samples` starts with; negative in front of the image.
    first: isize,
    upsampling: Upsampling,
    /// An upsampled row, where upsampling is needed.
    row: Vec<u8>,
    /// Column sums of two-dimensional upsampling.
    sums: Vec<u16>,
}

impl Window {
    fn new(frame: &Frame, component: &Component) -> Option<Window> {
        let upsampling = Upsampling::new(frame.max_h, frame.max_v, component)?;
        let stride = component.blocks_w * 8;
        let needs_row = upsampling != Upsampling::None;
        Some(Window {
            samples: vec![0; (KEPT + component.v * 8) * stride],
            stride,
            first: 0,
            upsampling,
            row: vec![0; if needs_row { stride * (frame.max_h / component.h) } else { 0 }],
            sums: vec![0; if needs_row { stride + 2 } else { 0 }],
        })
    }

    /// The part of row `at` of the component that holds samples; rows outside the image repeat its edge.
    fn samples_at<'s>(samples: &'s [u8], stride: usize, first: isize, component: &Component, at: isize) -> &'s [u8] {
        let at = at.clamp(0, component.height as isize - 1) - first;
        let start = at.max(0) as usize * stride;
        &samples[start..start + component.width]
    }
}

impl<'a> Renderer<'a> {
    /// None where a component's sampling cannot be upsampled in whole steps.
    pub fn new(frame: &'a Frame, model: ColorModel, from: usize, to: usize, out: &'a mut [u8]) -> Option<Renderer<'a>> {
        let windows = frame.components.iter().map(|component| Window::new(frame, component)).collect::<Option<_>>()?;
        Some(Renderer { frame, model, windows, next: from, from, to, out, vector: idct::has_vector_code() })
    }

    /// Takes a row of MCUs: the blocks of each component, row by row.
    pub fn push(&mut self, mcu_row: usize, rows: &[&[Block]]) {
        for ((window, component), blocks) in self.windows.iter_mut().zip(&self.frame.components).zip(rows) {
            let (stride, height) = (window.stride, component.v * 8);
            window.samples.copy_within(height * stride..(height + KEPT) * stride, 0);
            window.first = (mcu_row * height) as isize - KEPT as isize;
            for (y, blocks) in blocks.chunks_exact(component.blocks_w).enumerate() {
                let target = &mut window.samples[(KEPT + y * 8) * stride..];
                idct::row_of_blocks(blocks, &component.quant, target, stride);
            }
        }
        let below = (mcu_row + 1) * self.frame.max_v * 8;
        let ready = if mcu_row + 1 == self.frame.mcus_y { self.to } else { self.to.min(below.saturating_sub(KEPT)) };
        let row_bytes = self.frame.width * 3;
        while self.next < ready {
            let at = (self.next - self.from) * row_bytes;
            let out = &mut self.out[at..at + row_bytes];
            let mut planes: [&[u8]; 4] = [&[]; 4];
            for ((window, component), plane) in self.windows.iter_mut().zip(&self.frame.components).zip(&mut planes) {
                let y = (self.next * component.v / self.frame.max_v) as isize;
                let (samples, stride, first) = (&window.samples, window.stride, window.first);
                let near = Window::samples_at(samples, stride, first, component, y);
                *plane = if window.upsampling == Upsampling::None {
                    near
                } else {
                    // Only the vertical filter looks at a neighbouring row.
                    let is_upper = self.next.is_multiple_of(2);
                    let far = match window.upsampling {
                        Upsampling::Down | Upsampling::Both if is_upper => y - 1,
                        Upsampling::Down | Upsampling::Both => y + 1,
                        _ => y,
                    };
                    let far = Window::samples_at(samples, stride, first, component, far);
                    expand(window.upsampling, near, far, is_upper, &mut window.sums, &mut window.row, self.vector);
                    &window.row
                };
            }
            color::row(self.model, planes, out, self.vector);
            self.next += 1;
        }
    }
}
