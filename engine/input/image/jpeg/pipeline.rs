//! The two ways through a JPEG: row by row, or all scans first.
//!
//! In: a decoder whose header is read. Out: RGB pixels. Owns: buffers of coefficients and samples, the second thread.
//! Not here: what a scan or a row of pixels consists of (`scan.rs`, `render.rs`).

use std::sync::mpsc;

use rayon::prelude::*;

use super::color::ColorModel;
use super::huffman::HuffmanTable;
use super::render::{Renderer, Samples, grey};
use super::scan::{Block, RowLayout, Scan};
use super::{Decoder, Frame, JpegError, ScanHeader, idct};

/// Most scans of a file. Encoders write about ten; a bomb can have thousands, each of which visits every block.
const MAX_SCANS: usize = 500;
/// Images of fewer pixels are not worth a second thread.
const THREAD_PIXELS: usize = 1 << 17;
/// MCUs that go to the second thread at once, at least.
const BATCH_MCUS: usize = 128;
/// Batches under way.
const BATCHES: usize = 4;
/// MCUs whose coefficients are decoded before they are transformed: few enough to stay in the first cache.
const CHUNK_MCUS: usize = 16;

/// Decodes a file whose one sequential scan holds all components in order: coefficients live only until they are
/// transformed; rows are rendered on a second thread where the image is large.
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
    let mut batch = grey(frame, reader.batch_rows);
    for first in reader.starts() {
        let rows = reader.fill(&mut batch, first)?;
        renderer.push(first, rows, &batch);
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
        let (to_renderer, from_decoder) = mpsc::sync_channel::<(usize, usize, Samples)>(BATCHES);
        let (to_decoder, from_renderer) = mpsc::channel::<Samples>();
        let thread = std::thread::Builder::new().name("jpeg".into()).spawn_scoped(scope, move || {
            // The decoder stops sending at the end, or where it finds the file damaged.
            while let Ok((first, rows, batch)) = from_decoder.recv() {
                renderer.push(first, rows, &batch);
                // The decoder may be done.
                let _ = to_decoder.send(batch);
            }
        });
        thread.ok()?;
        for (number, first) in reader.starts().enumerate() {
            let mut batch = match number {
                0..BATCHES => grey(frame, reader.batch_rows),
                _ => from_renderer.recv().unwrap_or_else(|_| grey(frame, reader.batch_rows)),
            };
            let rows = match reader.fill(&mut batch, first) {
                Ok(rows) => rows,
                Err(error) => return Some(Err(error)),
            };
            if to_renderer.send((first, rows, batch)).is_err() {
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
    tables: Vec<(&'a HuffmanTable, &'a HuffmanTable)>,
    scan: Scan<'a>,
    /// Coefficients of a chunk of MCUs, a component at a time; zero between chunks.
    chunk: Vec<Vec<Block>>,
    layout: Vec<RowLayout>,
    /// Rows of MCUs in a batch.
    batch_rows: usize,
    allow_truncated: bool,
    is_over: bool,
}

impl<'a> RowReader<'a> {
    fn new(decoder: &'a Decoder, header: &'a ScanHeader, allow_truncated: bool) -> RowReader<'a> {
        let frame = &decoder.frame;
        RowReader {
            frame,
            tables: header.sequential_tables(),
            scan: Scan::new(decoder.bytes, header.data, decoder.restart_interval),
            chunk: frame.components.iter().map(|c| vec![[0; 64]; c.h * c.v * CHUNK_MCUS]).collect(),
            layout: frame.components.iter().map(|c| RowLayout { h: c.h, v: c.v, stride: c.h * CHUNK_MCUS }).collect(),
            batch_rows: (BATCH_MCUS / frame.mcus_x).max(1),
            allow_truncated,
            is_over: false,
        }
    }

    /// The first rows of the batches.
    fn starts(&self) -> std::iter::StepBy<std::ops::Range<usize>> {
        (0..self.frame.mcus_y).step_by(self.batch_rows)
    }

    /// Decodes the rows from `first` on and returns how many; behind the end of an accepted short file they are grey.
    fn fill(&mut self, batch: &mut Samples, first: usize) -> Result<usize, JpegError> {
        let rows = self.batch_rows.min(self.frame.mcus_y - first);
        for row in 0..rows {
            for from in (0..self.frame.mcus_x).step_by(CHUNK_MCUS) {
                self.fill_chunk(batch, row, from)?;
            }
        }
        Ok(rows)
    }

    fn fill_chunk(&mut self, batch: &mut Samples, row: usize, from: usize) -> Result<(), JpegError> {
        let count = CHUNK_MCUS.min(self.frame.mcus_x - from);
        if !self.is_over {
            let mut blocks: Vec<&mut [Block]> = self.chunk.iter_mut().map(Vec::as_mut_slice).collect();
            match self.scan.sequential_row(&self.layout, &self.tables, count, &mut blocks) {
                Err(_) if self.allow_truncated => self.is_over = true,
                result => result?,
            }
        }
        for ((component, blocks), samples) in self.frame.components.iter().zip(&mut self.chunk).zip(batch) {
            let stride = component.blocks_w * 8;
            for (y, blocks) in blocks.chunks_exact(component.h * CHUNK_MCUS).enumerate() {
                let at = (row * component.v + y) * 8 * stride + from * component.h * 8;
                idct::row_of_blocks(&blocks[..count * component.h], &component.quant, &mut samples[at..], stride);
            }
            blocks.as_flattened_mut().fill(0);
        }
        Ok(())
    }
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
        let mut samples = grey(frame, 1);
        for row in first.saturating_sub(1)..(last + 1).min(frame.mcus_y) {
            for ((component, blocks), samples) in frame.components.iter().zip(&blocks).zip(&mut samples) {
                let (across, down) = (component.blocks_w, component.v);
                let blocks = &blocks[row * down * across..][..down * across];
                for (y, blocks) in blocks.chunks_exact(across).enumerate() {
                    idct::row_of_blocks(blocks, &component.quant, &mut samples[y * 8 * across * 8..], across * 8);
                }
            }
            renderer.push(row, 1, &samples);
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
    let tables = header.sequential_tables();
    let mut decode = |layout: &[RowLayout], count: usize, rows: &mut [&mut [Block]]| {
        if frame.is_progressive {
            scan.progressive_row(layout, &header.tables, header.band, count, rows)
        } else {
            scan.sequential_row(layout, &tables, count, rows)
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
