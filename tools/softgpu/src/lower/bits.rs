//! Bit fields, byte permutations and three-input logic.
//! In: words. Out: words. Owns: the definitions of prmt, lop3, bfe and bfi. Not here: lanes and registers (`integer`).
//! Source: PTX ISA, "Logic and Shift Instructions", "Integer Arithmetic Instructions".

/// `prmt`: selects bytes of {b, a}; bit 3 of a selector nibble replicates the byte's sign.
pub(crate) fn prmt(a: u32, b: u32, c: u32, mode: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let s = c & 3;
    // Special modes choose by the low two bits of c: f4e, b4e, rc8, ecl, ecr, rc16.
    let c = match mode {
        1 => [0x3210, 0x4321, 0x5432, 0x6543][s as usize],
        2 => [0x5670, 0x6701, 0x7012, 0x0123][s as usize],
        3 => [0x0000, 0x1111, 0x2222, 0x3333][s as usize],
        4 => [0x3210, 0x3211, 0x3222, 0x3333][s as usize],
        5 => [0x0000, 0x1110, 0x2210, 0x3210][s as usize],
        6 => [0x1010, 0x3232, 0x1010, 0x3232][s as usize],
        _ => c,
    };
    let mut r = 0;
    for n in 0..4 {
        let k = c >> (4 * n) & 15;
        let byte = (bytes >> (8 * (k & 7)) & 0xff) as u32;
        let byte = if k & 8 != 0 { if byte & 0x80 != 0 { 0xff } else { 0 } } else { byte };
        r |= byte << (8 * n);
    }
    r
}

/// `lop3` with truth table `x`: bit (a, b, c) of the table.
#[inline(always)]
pub(super) fn lop3(a: u32, b: u32, c: u32, x: u32) -> u32 {
    let pick = |n: u32, v: u32| if x >> n & 1 != 0 { v } else { 0 };
    pick(0, !a & !b & !c)
        | pick(1, !a & !b & c)
        | pick(2, !a & b & !c)
        | pick(3, !a & b & c)
        | pick(4, a & !b & !c)
        | pick(5, a & !b & c)
        | pick(6, a & b & !c)
        | pick(7, a & b & c)
}

pub(super) fn bfe_u(a: u64, b: u32, c: u32, bits: u32) -> u64 {
    let (pos, len) = (b & 0xff, c & 0xff);
    if pos >= bits {
        return 0;
    }
    let v = a >> pos;
    if len >= 64 { v } else { v & ((1u64 << len) - 1) }
}

/// Signed extract: bits beyond the word repeat its sign, as does the top bit of the field.
pub(super) fn bfe_s(a: i64, b: u32, c: u32, bits: u32) -> i64 {
    let (pos, len) = (b & 0xff, c & 0xff);
    if len == 0 {
        return 0;
    }
    let v = a >> pos.min(63);
    let top = (pos + len - 1).min(bits - 1);
    if len >= 64 || len >= bits {
        return if (a >> top) & 1 != 0 && pos >= bits { -1 } else { v };
    }
    let low = v & ((1i64 << len) - 1);
    if (a >> top) & 1 != 0 { low | !((1i64 << len) - 1) } else { low }
}

pub(super) fn bfi(a: u64, b: u64, c: u32, d: u32, bits: u32) -> u64 {
    let (pos, len) = (c & 0xff, d & 0xff);
    if pos >= bits {
        return b;
    }
    let ones = if len >= 64 { u64::MAX } else { (1u64 << len) - 1 };
    let mask = ones << pos;
    b & !mask | a << pos & mask
}
