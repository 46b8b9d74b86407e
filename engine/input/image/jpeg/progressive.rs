//! Blocks of progressive scans.
//!
//! In: the bits of a scan, its spectral band and bit position. Out: coefficients refined in place, natural order.
//! Not here: which blocks a scan visits (`scan.rs`). Source: ITU-T T.81, annex G.

use super::huffman::{BitReader, HuffmanTable, ZIGZAG};

/// The band and the bit position of a progressive scan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    /// First and last coefficient in zigzag order.
    pub start: usize,
    pub end: usize,
    /// Bit position of the scan.
    pub low: u32,
    /// Whether an earlier scan sent the higher bits.
    pub refines: bool,
}

/// DC coefficient, first scan: the difference to the previous block's, shifted.
#[inline(always)]
pub(super) fn dc_first(bits: &mut BitReader, table: &HuffmanTable, low: u32, prediction: &mut i32, dc: &mut i16) {
    *prediction = prediction.wrapping_add(bits.dc_difference(table));
    *dc = prediction.wrapping_shl(low) as i16;
}

/// DC coefficient, one more bit.
#[inline(always)]
pub(super) fn dc_refine(bits: &mut BitReader, low: u32, dc: &mut i16) {
    *dc |= (bits.take(1) << low) as i16;
}

/// AC coefficients of a block, first scan. `skip` counts the blocks, this one included, that have nothing more in the band.
#[inline(always)]
pub(super) fn ac_first(bits: &mut BitReader, table: &HuffmanTable, band: Band, skip: &mut u32, block: &mut [i16; 64]) {
    if *skip > 0 {
        *skip -= 1;
        return;
    }
    let mut k = band.start;
    while k <= band.end {
        let (run, value) = match bits.short_ac(table) {
            Some(short) => short,
            None => {
                let symbol = bits.symbol(table);
                let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
                if size == 0 && run < 15 {
                    // A run of 2^run + extra blocks ends here, of which this is the first.
                    *skip = (1 << run) - 1 + bits.take(run);
                    break;
                }
                (run, bits.signed(size))
            }
        };
        k += run as usize;
        if k > 63 {
            bits.mark_nonsense();
            break;
        }
        block[usize::from(ZIGZAG[k & 63])] = value.wrapping_shl(band.low) as i16;
        k += 1;
    }
}

/// AC coefficients of a block, one more bit: a correction bit for every coefficient that is not zero, and new ones
/// between them, which are plus or minus one in the scan's bit position.
pub(super) fn ac_refine(bits: &mut BitReader, table: &HuffmanTable, band: Band, skip: &mut u32, block: &mut [i16; 64]) {
    let one = 1i16 << band.low;
    let correct = |bits: &mut BitReader, coefficient: &mut i16| {
        if bits.take(1) == 1 && *coefficient & one == 0 {
            *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { one } else { -one });
        }
    };
    let mut k = band.start;
    if *skip == 0 {
        while k <= band.end {
            let symbol = bits.symbol(table);
            let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
            let mut value = 0;
            if size == 0 {
                if run < 15 {
                    *skip = (1 << run) + bits.take(run);
                    break;
                }
            } else {
                if size != 1 {
                    bits.mark_nonsense();
                }
                value = if bits.take(1) == 1 { one } else { -one };
            }
            // Past `run` coefficients that are still zero; those that are not take their correction bit on the way.
            while k <= band.end {
                let coefficient = &mut block[usize::from(ZIGZAG[k & 63])];
                if *coefficient != 0 {
                    correct(bits, coefficient);
                } else if run == 0 {
                    *coefficient = value;
                    k += 1;
                    break;
                } else {
                    run -= 1;
                }
                k += 1;
            }
        }
    }
    if *skip > 0 {
        for k in k..=band.end {
            let coefficient = &mut block[usize::from(ZIGZAG[k & 63])];
            if *coefficient != 0 {
                correct(bits, coefficient);
            }
        }
        *skip -= 1;
    }
}
