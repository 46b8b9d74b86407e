//! The two ways through a JPEG: row by row, or all scans first.
//!
//! In: a decoder whose header is read. Out: RGB pixels. Owns: buffers of coefficients, the second thread.
//! Not here: what a scan or a row of pixels consists of (`scan.rs`, `render.rs`).

use std::sync::mpsc;

use rayon::prelude::*;

use super::color::ColorModel;
use super::render::Renderer;
use super::scan::{Block, RowLayout, Scan};
use super::{Decoder, Frame, JpegError, ScanHeader};

/// Most scans of a file. Encoders write about ten; a bomb can have thousands, each of which visits every block.
const MAX_SCANS: usize = 500;
/// Images of fewer pixels are not worth a second thread.
const THREAD_PIXELS: usize = 1 << 17;
/// MCUs that go to the second thread at once, at least.
const BATCH_MCUS: usize = 128;
/// Batches under way.
const BATCHES: usize = 4;

/// Coefficients of some rows of MCUs: for each component its blocks, row by row.
type Batch = Vec<Vec<Block>>;

/// Decodes a file whose one sequential scan holds all components in order: coefficients live only until their row is
/// rendered, on a second thread where the image is large.
pub(super) fn streamed(
    decoder: &Decoder,
    model: ColorModel,
    header: &ScanHeader,
    allow_truncated: bool,
) -> Result<Vec<u8>, JpegError> {
    let frame = &decoder.frame;
    let is_large = frame.width * frame.height >= THREAD_PIXELS;
    if is_large && std::thread::available_parallelism().is_ok_and(|threads| threads.get() > 1) {
        let reader = RowReader::new(decoder, header, allow_truncated);
        if let Some(result) = on_two_threads(frame, model, reader) {
            return result;
        }
    }
    let mut reader = RowReader::new(decoder, header, allow_truncated);
    let mut out = vec![0u8; frame.width * frame.height * 3];
    let mut renderer = Renderer::new(frame, model, 0, frame.height, &mut out).ok_or_else(fractional)?;
    let mut batch = reader.fresh();
    for first in reader.starts() {
        reader.fill(&mut batch, first)?;
        render(&mut renderer, frame, &mut batch, first, reader.batch_rows);
    }
    Ok(out)
}

/// None where the system gives no second thread.
fn on_two_threads(frame: &Frame, model: ColorModel, mut reader: RowReader) -> Option<Result<Vec<u8>, JpegError>> {
    let mut out = vec![0u8; frame.width * frame.height * 3];
    let Some(mut renderer) = Renderer::new(frame, model, 0, frame.height, &mut out) else {
        return Some(Err(fractional()));
    };
    let decoded = std::thread::scope(|scope| {
        let (to_renderer, from_decoder) = mpsc::sync_channel::<Batch>(BATCHES);
        let (to_decoder, from_renderer) = mpsc::channel::<Batch>();
        let (starts, batch_rows) = (reader.starts(), reader.batch_rows);
        let thread = std::thread::Builder::new().name("jpeg".into()).spawn_scoped(scope, move || {
            for first in starts {
                // The decoder stops sending where it finds the file damaged.
                let Ok(mut batch) = from_decoder.recv() else { return };
                render(&mut renderer, frame, &mut batch, first, batch_rows);
                // The decoder may be done.
                let _ = to_decoder.send(batch);
            }
        });
        thread.ok()?;
        for (number, first) in reader.starts().enumerate() {
            let mut batch = match number {
                0..BATCHES => reader.fresh(),
                _ => from_renderer.recv().unwrap_or_else(|_| reader.fresh()),
            };
            if let Err(error) = reader.fill(&mut batch, first) {
                return Some(Err(error));
            }
            if to_renderer.send(batch).is_err() {
                break;
            }
        }
        Some(Ok(()))
    });
    decoded.map(|result| result.map(|()| out))
}

/// Reads the rows of a sequential scan batch by batch.
struct RowReader<'a> {
    frame: &'a Frame,
    header: &'a ScanHeader,
    scan: Scan<'a>,
    layout: Vec<RowLayout>,
    batch_rows: usize,
    allow_truncated: bool,
    is_over: bool,
}

impl<'a> RowReader<'a> {
    fn new(decoder: &'a Decoder, header: &'a ScanHeader, allow_truncated: bool) -> RowReader<'a> {
        let frame = &decoder.frame;
        let layout = frame.components.iter().map(|c| RowLayout { h: c.h, v: c.v, stride: c.blocks_w }).collect();
        RowReader {
            frame,
            header,
            scan: Scan::new(decoder.bytes, header.data, decoder.restart_interval),
            layout,
            batch_rows: (BATCH_MCUS / frame.mcus_x).max(1),
            allow_truncated,
            is_over: false,
        }
    }

    /// The first rows of the batches.
    fn starts(&self) -> std::iter::StepBy<std::ops::Range<usize>> {
        (0..self.frame.mcus_y).step_by(self.batch_rows)
    }

    /// A batch of zeros.
    fn fresh(&self) -> Batch {
        self.layout.iter().map(|shape| vec![[0; 64]; shape.stride * shape.v * self.batch_rows]).collect()
    }

    /// Decodes the rows from `first` on into a zeroed batch; behind the end of an accepted short file it stays zero.
    fn fill(&mut self, batch: &mut Batch, first: usize) -> Result<(), JpegError> {
        for row in 0..self.batch_rows.min(self.frame.mcus_y - first) {
            if self.is_over {
                return Ok(());
            }
            let parts = batch.iter_mut().zip(&self.layout);
            let mut rows: Vec<&mut [Block]> = parts
                .map(|(blocks, shape)| &mut blocks[row * shape.v * shape.stride..][..shape.v * shape.stride])
                .collect();
            match self.scan.sequential_row(&self.layout, &self.header.tables, self.frame.mcus_x, &mut rows) {
                Err(_) if self.allow_truncated => self.is_over = true,
                result => result?,
            }
        }
        Ok(())
    }
}

/// Renders a batch and zeroes it for the next rows.
fn render(renderer: &mut Renderer, frame: &Frame, batch: &mut Batch, first: usize, batch_rows: usize) {
    for row in 0..batch_rows.min(frame.mcus_y - first) {
        renderer.push(first + row, &mcu_row(frame, batch, row));
    }
    for blocks in batch {
        blocks.as_flattened_mut().fill(0);
    }
}

/// The blocks of one row of MCUs, a slice for each component.
fn mcu_row<'b>(frame: &Frame, blocks: &'b [Vec<Block>], row: usize) -> Vec<&'b [Block]> {
    let rows = frame.components.iter().zip(blocks);
    rows.map(|(c, blocks)| &blocks[row * c.v * c.blocks_w..][..c.v * c.blocks_w]).collect()
}

/// Decodes a progressive file, or one whose components come in several scans.
pub(super) fn buffered(
    decoder: &mut Decoder,
    model: ColorModel,
    first_scan: ScanHeader,
    allow_truncated: bool,
) -> Result<Vec<u8>, JpegError> {
    let sizes = decoder.frame.components.iter().map(|c| c.blocks_w * c.blocks_h);
    let mut blocks: Vec<Vec<Block>> = sizes.map(|size| vec![[0; 64]; size]).collect();
    match all_scans(decoder, first_scan, &mut blocks) {
        Err(JpegError::Truncated(_) | JpegError::Damaged(_)) if allow_truncated => {}
        result => result?,
    }
    let frame = &decoder.frame;
    let mut out = vec![0u8; frame.width * frame.height * 3];
    let (row_pixels, band_rows) = (frame.max_v * 8, frame.mcus_y.div_ceil(rayon::current_num_threads()).max(8));
    out.par_chunks_mut(band_rows * row_pixels * frame.width * 3).enumerate().try_for_each(|(band, out)| {
        let (first, last) = (band * band_rows, ((band + 1) * band_rows).min(frame.mcus_y));
        let (from, to) = (first * row_pixels, (last * row_pixels).min(frame.height));
        let mut renderer = Renderer::new(frame, model, from, to, out).ok_or_else(fractional)?;
        for row in first.saturating_sub(1)..(last + 1).min(frame.mcus_y) {
            renderer.push(row, &mcu_row(frame, &blocks, row));
        }
        Ok(())
    })?;
    Ok(out)
}

fn all_scans(decoder: &mut Decoder, first: ScanHeader, blocks: &mut [Vec<Block>]) -> Result<(), JpegError> {
    let mut header = first;
    let mut is_seen = [false; 4];
    for _ in 0..MAX_SCANS {
        for &component in &header.components {
            is_seen[component] = true;
        }
        decoder.position = one_scan(decoder, &header, blocks)?;
        loop {
            match decoder.next_marker() {
                None => return Err(JpegError::Truncated("it ends between two scans".into())),
                Some(0xda) => break,
                Some(0xd9) if is_seen[..decoder.frame.components.len()].contains(&false) => {
                    return Err(JpegError::damaged("a component has no image data"));
                }
                Some(0xd9) => return Ok(()),
                Some(code) => decoder.segment(code)?,
            }
        }
        header = decoder.scan_header()?;
    }
    Err(JpegError::Damaged(format!("it has more than {MAX_SCANS} scans")))
}

/// Decodes one scan into `blocks` and returns where it ends.
fn one_scan(decoder: &Decoder, header: &ScanHeader, blocks: &mut [Vec<Block>]) -> Result<usize, JpegError> {
    let frame = &decoder.frame;
    let mut scan = Scan::new(decoder.bytes, header.data, decoder.restart_interval);
    let mut decode = |layout: &[RowLayout], count: usize, rows: &mut [&mut [Block]]| {
        if frame.is_progressive {
            scan.progressive_row(layout, &header.tables, header.band, count, rows)
        } else {
            scan.sequential_row(layout, &header.tables, count, rows)
        }
    };
    if let [only] = header.components[..] {
        // One component alone comes block by block, without those that only fill up an MCU.
        let component = &frame.components[only];
        let layout = [RowLayout { h: 1, v: 1, stride: component.blocks_w }];
        for row in 0..component.real_h {
            let row = &mut blocks[only][row * component.blocks_w..][..component.real_w];
            decode(&layout, component.real_w, &mut [row])?;
        }
        return Ok(scan.position());
    }
    let shape = |&c: &usize| (frame.components[c].h, frame.components[c].v, frame.components[c].blocks_w);
    let layout: Vec<RowLayout> =
        header.components.iter().map(shape).map(|(h, v, stride)| RowLayout { h, v, stride }).collect();
    for row in 0..frame.mcus_y {
        let mut all: Vec<Option<&mut [Block]>> = blocks
            .iter_mut()
            .zip(&frame.components)
            .map(|(blocks, c)| Some(&mut blocks[row * c.v * c.blocks_w..][..c.v * c.blocks_w]))
            .collect();
        let mut rows: Vec<&mut [Block]> = header.components.iter().filter_map(|&c| all[c].take()).collect();
        decode(&layout, frame.mcus_x, &mut rows)?;
    }
    Ok(scan.position())
}

fn fractional() -> JpegError {
    JpegError::Unsupported("a JPEG whose components are subsampled by other than whole factors".into())
}
