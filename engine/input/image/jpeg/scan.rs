//! The blocks of a scan in their order.
//!
//! In: the bits of a scan, its components and tables. Out: coefficients of whole rows of MCUs. Owns: interleaving,
//! restart intervals, telling that a scan ends early. Not here: what is in a block (`huffman.rs`, `progressive.rs`).
//! Source: ITU-T T.81, annex A.2 and E.2.

use super::JpegError;
use super::huffman::{BitReader, HuffmanTable};
use super::progressive::{self, Band};

/// Quantised coefficients of a block, natural order.
pub(super) type Block = [i16; 64];

/// A component's part of one row of MCUs.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowLayout {
    /// Blocks of an MCU, across and down.
    pub h: usize,
    pub v: usize,
    /// Blocks between one row of blocks and the next.
    pub stride: usize,
}

/// Tables of a component in a scan; a progressive scan has only those that it needs.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables {
    pub dc: Option<HuffmanTable>,
    pub ac: Option<HuffmanTable>,
}

/// A scan in progress.
pub(super) struct Scan<'a> {
    bits: BitReader<'a>,
    bytes: &'a [u8],
    /// MCUs between restart markers, 0 for none, and how many are left until the next one.
    restart_interval: usize,
    left: usize,
    next_restart: u8,
    /// DC value of each component's previous block.
    predictions: [i32; 4],
    /// Blocks without further coefficients in this progressive band.
    skip: u32,
    done: usize,
}

impl<'a> Scan<'a> {
    /// A scan whose entropy-coded data start at `position`.
    pub fn new(bytes: &'a [u8], position: usize, restart_interval: usize) -> Scan<'a> {
        Scan {
            bits: BitReader::new(bytes, position),
            bytes,
            restart_interval,
            left: restart_interval,
            next_restart: 0,
            predictions: [0; 4],
            skip: 0,
            done: 0,
        }
    }

    /// Where markers behind the scan can be looked for.
    pub fn position(&self) -> usize {
        self.bits.position()
    }

    /// Decodes `count` MCUs of a sequential scan; `tables` are for DC and AC, of each component.
    pub fn sequential_row(
        &mut self,
        layout: &[RowLayout],
        tables: &[(&HuffmanTable, &HuffmanTable)],
        count: usize,
        rows: &mut [&mut [Block]],
    ) -> Result<(), JpegError> {
        self.row(layout, count, rows, |bits, component, prediction, _, block| {
            let (dc, ac) = tables[component];
            bits.sequential_block(dc, ac, prediction, block);
        })
    }

    /// Decodes `count` MCUs of a progressive scan.
    pub fn progressive_row(
        &mut self,
        layout: &[RowLayout],
        tables: &[Tables],
        band: Band,
        count: usize,
        rows: &mut [&mut [Block]],
    ) -> Result<(), JpegError> {
        let missing = || JpegError::damaged("a scan without its Huffman table");
        match (band.start, band.refines) {
            (0, true) => self.row(layout, count, rows, |bits, _, _, _, block| {
                progressive::dc_refine(bits, band.low, &mut block[0]);
            }),
            (0, false) => {
                let tables: Vec<&HuffmanTable> = tables.iter().filter_map(|t| t.dc.as_ref()).collect();
                self.row(layout, count, rows, |bits, component, prediction, _, block| {
                    progressive::dc_first(bits, tables[component], band.low, prediction, &mut block[0]);
                })
            }
            (_, false) => {
                let table = tables[0].ac.as_ref().ok_or_else(missing)?;
                self.row(layout, count, rows, |bits, _, _, skip, block| {
                    progressive::ac_first(bits, table, band, skip, block);
                })
            }
            (_, true) => {
                let table = tables[0].ac.as_ref().ok_or_else(missing)?;
                self.row(layout, count, rows, |bits, _, _, skip, block| {
                    progressive::ac_refine(bits, table, band, skip, block);
                })
            }
        }
    }

    #[inline(always)]
    fn row(
        &mut self,
        layout: &[RowLayout],
        count: usize,
        rows: &mut [&mut [Block]],
        mut block: impl FnMut(&mut BitReader<'a>, usize, &mut i32, &mut u32, &mut Block),
    ) -> Result<(), JpegError> {
        // A copy, so that the reader's state can live in registers.
        let mut bits = self.bits;
        for mcu in 0..count {
            if self.restart_interval > 0 {
                if self.left == 0 {
                    bits = self.restart(bits)?;
                }
                self.left -= 1;
            }
            for (component, (shape, row)) in layout.iter().zip(rows.iter_mut()).enumerate() {
                let prediction = &mut self.predictions[component & 3];
                for y in 0..shape.v {
                    let at = y * shape.stride + mcu * shape.h;
                    for target in &mut row[at..at + shape.h] {
                        block(&mut bits, component, prediction, &mut self.skip, target);
                    }
                }
            }
            if bits.is_exhausted() || bits.is_nonsense() {
                self.bits = bits;
                let done = self.done + mcu;
                return Err(if bits.is_exhausted() {
                    JpegError::Truncated(format!("its image data end after {done} blocks of a scan"))
                } else {
                    JpegError::Damaged(format!("its image data make no sense after {done} blocks of a scan"))
                });
            }
        }
        self.done += count;
        self.bits = bits;
        Ok(())
    }

    /// Goes on behind the restart marker that must come now.
    fn restart(&mut self, bits: BitReader<'a>) -> Result<BitReader<'a>, JpegError> {
        let mut position = bits.position();
        // Bytes in front of the marker that no MCU used are skipped, as libjpeg does.
        let found = loop {
            match self.bytes.get(position..).and_then(|rest| rest.iter().position(|&byte| byte == 0xff)) {
                None => break None,
                Some(offset) => position += offset,
            }
            match self.bytes.get(position + 1) {
                None => break None,
                Some(0) => position += 2,
                Some(0xff) => position += 1,
                Some(&code) => break Some(code),
            }
        };
        let expected = 0xd0 + self.next_restart;
        match found {
            Some(code) if code == expected => {
                self.next_restart = (self.next_restart + 1) % 8;
                self.left = self.restart_interval;
                self.predictions = [0; 4];
                self.skip = 0;
                Ok(BitReader::new(self.bytes, position + 2))
            }
            None | Some(0xd9) => {
                Err(JpegError::Truncated(format!("it ends where restart marker {expected:02x} belongs")))
            }
            Some(code) => {
                Err(JpegError::Damaged(format!("marker {code:02x} stands where restart marker {expected:02x} belongs")))
            }
        }
    }
}
