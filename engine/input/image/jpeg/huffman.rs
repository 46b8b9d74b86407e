//! Entropy-coded segments of a JPEG: the bit reader, Huffman tables, sequential blocks.
//!
//! In: bytes behind an SOS marker. Out: quantised coefficients in natural order. Owns: byte stuffing, look-ahead tables,
//! knowing that data ended early or make no sense. Not here: progressive scans (`progressive.rs`), markers (`mod.rs`).
//! Source: ITU-T T.81, annexes C and F.

use super::JpegError;

/// Bits that one table look-up sees.
const LOOKAHEAD: u32 = 10;

/// Position in a block of the k-th coefficient of the zigzag order.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// What a table codes, which decides what a symbol means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableKind {
    Dc,
    Ac,
}

/// A table as a DHT segment carries it.
#[derive(Debug, Clone)]
pub(super) struct TableSpec {
    /// Number of codes of each length 1 to 16.
    pub counts: [u8; 16],
    /// Symbols in order of their codes.
    pub symbols: Vec<u8>,
}

/// A table ready for decoding.
#[derive(Debug, Clone)]
pub(super) struct HuffmanTable {
    /// By the next 10 bits: `value << 16 | run << 8 | bits` where code and magnitude both lie in those bits, else 0.
    /// An end-of-block symbol is a run that leaves the block.
    whole: [i32; 1 << LOOKAHEAD],
    /// By the next 10 bits: `bits << 8 | symbol` where the code lies in them, else 0.
    code: [u16; 1 << LOOKAHEAD],
    /// By length: one past the last code, aligned to 16 bits.
    limit: [u32; 17],
    /// By length: what is added to a code to find its symbol.
    offset: [i32; 17],
    symbols: [u8; 256],
}

/// The run that stands for "end of block".
const END_OF_BLOCK: u32 = 64;

impl HuffmanTable {
    /// Derives the look-up tables; a table whose codes do not fit their lengths is damaged.
    pub fn new(spec: &TableSpec, kind: TableKind) -> Result<HuffmanTable, JpegError> {
        let mut table = HuffmanTable {
            whole: [0; 1 << LOOKAHEAD],
            code: [0; 1 << LOOKAHEAD],
            limit: [0; 17],
            offset: [0; 17],
            symbols: [0; 256],
        };
        let mut code = 0u32;
        let mut index = 0usize;
        for length in 1..=16u32 {
            let count = usize::from(spec.counts[length as usize - 1]);
            table.offset[length as usize] = index as i32 - code as i32;
            for _ in 0..count {
                let symbol = match spec.symbols.get(index) {
                    Some(&symbol) if index < 256 && code < 1 << length => symbol,
                    _ => return Err(JpegError::damaged("a Huffman table has more codes than fit their lengths")),
                };
                if kind == TableKind::Dc && symbol > 15 {
                    return Err(JpegError::damaged("a Huffman table for DC differences has a size above 15 bits"));
                }
                table.symbols[index] = symbol;
                if length <= LOOKAHEAD {
                    table.fill_lookahead(code, length, symbol, kind);
                }
                code += 1;
                index += 1;
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    fn fill_lookahead(&mut self, code: u32, length: u32, symbol: u8, kind: TableKind) {
        let (run, size) = match kind {
            TableKind::Dc => (0, u32::from(symbol)),
            TableKind::Ac => (u32::from(symbol >> 4), u32::from(symbol & 15)),
        };
        let free = LOOKAHEAD - length;
        for tail in 0..1u32 << free {
            let at = (code << free | tail) as usize;
            self.code[at] = (length << 8 | u32::from(symbol)) as u16;
            if size <= free {
                let value = extend(tail >> (free - size), size);
                let run = if kind == TableKind::Ac && size == 0 && run != 15 { END_OF_BLOCK } else { run };
                self.whole[at] = value << 16 | (run << 8 | (length + size)) as i32;
            }
        }
    }
}

/// The signed value of `size` magnitude bits (T.81, figure F.12).
#[inline(always)]
fn extend(bits: u32, size: u32) -> i32 {
    if size == 0 {
        return 0;
    }
    let bits = bits as i32;
    if bits >> (size - 1) == 0 { bits - (1 << size) + 1 } else { bits }
}

/// Reads bits, most significant first, and stops in front of the next marker.
///
/// Everything on the hot path is inlined and the two rare cases get and return plain numbers, so that a reader that is
/// a local variable lives in registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Next bits, from the top. Below `count` there may be a true foretaste of what follows.
    bits: u64,
    /// Bits that count as read from the file, padding included.
    count: u32,
    /// Zero bits put behind the end of the data.
    padding: u32,
    /// The next byte to take.
    position: usize,
    /// Not 0 once a code or a run was met that no encoder writes.
    nonsense: u32,
}

impl<'a> BitReader<'a> {
    pub fn new(bytes: &'a [u8], position: usize) -> BitReader<'a> {
        BitReader { bytes, bits: 0, count: 0, padding: 0, position, nonsense: 0 }
    }

    /// Where the next marker can be looked for.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether bits were used that the file does not have.
    #[inline(always)]
    pub fn is_exhausted(&self) -> bool {
        self.count < self.padding
    }

    /// Whether a code or a run was met that no encoder writes.
    #[inline(always)]
    pub fn is_nonsense(&self) -> bool {
        self.nonsense != 0
    }

    /// Notes a value that no encoder writes.
    #[inline(always)]
    pub fn mark_nonsense(&mut self) {
        self.nonsense = 1;
    }

    /// Makes at least 32 bits available.
    #[inline(always)]
    fn refill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(chunk) = self.bytes.get(self.position..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_be_bytes(*chunk);
            // No byte of the word is 0xff: no byte of its complement is zero.
            let inverse = !word;
            if inverse.wrapping_sub(0x0101_0101_0101_0101) & !inverse & 0x8080_8080_8080_8080 == 0 {
                self.bits |= word >> self.count;
                self.position += (63 - self.count as usize) >> 3;
                self.count |= 56;
                return;
            }
        }
        (self.bits, self.count, self.padding, self.position) =
            refill_bytewise(self.bytes, self.bits, self.count, self.padding, self.position);
    }

    #[inline(always)]
    fn peek(&self) -> usize {
        (self.bits >> (64 - LOOKAHEAD)) as usize
    }

    #[inline(always)]
    fn consume(&mut self, count: u32) {
        self.bits <<= count;
        self.count -= count;
    }

    /// The next `count` bits, at most 16.
    #[inline(always)]
    pub fn take(&mut self, count: u32) -> u32 {
        self.refill();
        if count == 0 {
            return 0;
        }
        let value = (self.bits >> (64 - count)) as u32;
        self.consume(count);
        value
    }

    /// The next symbol of `table`. Of the bits that a refill gives, at least 16 are left.
    #[inline(always)]
    pub fn symbol(&mut self, table: &HuffmanTable) -> u8 {
        self.refill();
        let entry = table.code[self.peek()];
        if entry != 0 {
            self.consume(u32::from(entry >> 8));
            return entry as u8;
        }
        let (length, symbol) = long_code((self.bits >> 48) as u32, table);
        self.nonsense |= u32::from(length > 16);
        self.consume(length.min(16));
        symbol
    }

    /// A signed value of `size` magnitude bits.
    #[inline(always)]
    pub fn signed(&mut self, size: u32) -> i32 {
        let bits = self.take(size);
        extend(bits, size)
    }

    /// The next DC difference.
    #[inline(always)]
    pub fn dc_difference(&mut self, table: &HuffmanTable) -> i32 {
        self.refill();
        let entry = table.whole[self.peek()];
        if entry != 0 {
            self.consume(entry as u32 & 0xff);
            return entry >> 16;
        }
        let size = self.symbol(table);
        self.signed(u32::from(size))
    }

    /// The run and the value of the next AC symbol where code and magnitude are short; none for others and for the end
    /// of a block.
    #[inline(always)]
    pub fn short_ac(&mut self, table: &HuffmanTable) -> Option<(u32, i32)> {
        self.refill();
        let entry = table.whole[self.peek()];
        let run = entry as u32 >> 8 & 0xff;
        if entry == 0 || run == END_OF_BLOCK {
            return None;
        }
        self.consume(entry as u32 & 0xff);
        Some((run, entry >> 16))
    }

    /// Decodes one block of a sequential scan into `block`, which is zero before. `prediction` is the DC value of the
    /// component's previous block and becomes this one's.
    #[inline(always)]
    pub fn sequential_block(
        &mut self,
        dc: &HuffmanTable,
        ac: &HuffmanTable,
        prediction: &mut i32,
        block: &mut [i16; 64],
    ) {
        *prediction = prediction.wrapping_add(self.dc_difference(dc));
        block[0] = *prediction as i16;
        let mut k = 1u32;
        while k < 64 {
            self.refill();
            let entry = ac.whole[self.peek()];
            let (run, value);
            if entry != 0 {
                self.consume(entry as u32 & 0xff);
                run = entry as u32 >> 8 & 0xff;
                value = entry >> 16;
            } else {
                let symbol = u32::from(self.symbol(ac));
                let size = symbol & 15;
                run = if size == 0 && symbol != 0xf0 { END_OF_BLOCK } else { symbol >> 4 };
                // A symbol and its magnitude have 31 bits at most, so the bits of one refill suffice.
                value = if size == 0 { 0 } else { extend((self.bits >> (64 - size)) as u32, size) };
                self.consume(size);
            }
            k += run;
            if k > 63 {
                self.nonsense |= u32::from(run < END_OF_BLOCK);
                break;
            }
            block[usize::from(ZIGZAG[k as usize & 63])] = value as i16;
            k += 1;
        }
    }
}

/// Refills byte by byte: next to 0xff, or near the end of the file.
#[cold]
#[inline(never)]
fn refill_bytewise(
    bytes: &[u8],
    mut bits: u64,
    mut count: u32,
    mut padding: u32,
    mut position: usize,
) -> (u64, u32, u32, usize) {
    bits &= !u64::MAX.checked_shr(count).unwrap_or(0);
    while count <= 56 {
        let byte = match bytes.get(position) {
            Some(0xff) => {
                // Any number of 0xff may stand before a marker's code; a zero makes the last one data.
                let fill = bytes[position..].iter().take_while(|&&byte| byte == 0xff).count();
                if bytes.get(position + fill) == Some(&0) {
                    position += fill + 1;
                    Some(0xff)
                } else {
                    None
                }
            }
            Some(&byte) => {
                position += 1;
                Some(byte)
            }
            None => None,
        };
        match byte {
            Some(byte) => bits |= u64::from(byte) << (56 - count),
            None => padding += 8,
        }
        count += 8;
    }
    (bits, count, padding, position)
}

/// Length and symbol of a code longer than the look-ahead, given the next 16 bits; a length of 17 where there is none.
#[cold]
#[inline(never)]
fn long_code(next: u32, table: &HuffmanTable) -> (u32, u8) {
    for length in LOOKAHEAD + 1..=16 {
        if next < table.limit[length as usize] {
            let index = (next >> (16 - length)) as i32 + table.offset[length as usize];
            return (length, table.symbols[(index & 255) as usize]);
        }
    }
    (17, 0)
}

/// The tables that T.81 annex K.3 gives and motion JPEG frames leave out: `(kind, index)`, index 0 for luma.
pub(super) fn standard_table(kind: TableKind, index: usize) -> Option<TableSpec> {
    const DC_SYMBOLS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    const AC_LUMA: [u8; 162] = [
        0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
        0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72,
        0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37,
        0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
        0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
        0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3,
        0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
        0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
        0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ];
    const AC_CHROMA: [u8; 162] = [
        0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
        0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1,
        0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36,
        0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
        0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a,
        0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
        0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
        0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
        0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ];
    let (counts, symbols): ([u8; 16], &[u8]) = match (kind, index) {
        (TableKind::Dc, 0) => ([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &DC_SYMBOLS),
        (TableKind::Dc, 1) => ([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &DC_SYMBOLS),
        (TableKind::Ac, 0) => ([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], &AC_LUMA),
        (TableKind::Ac, 1) => ([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119], &AC_CHROMA),
        _ => return None,
    };
    Some(TableSpec { counts, symbols: symbols.to_vec() })
}
