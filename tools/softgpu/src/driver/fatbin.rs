//! PTX out of fatbins.
//! In: an image pointer as given to cuModuleLoadData. Out: PTX text. Owns: the container's layout, LZ4 blocks.
//! Not here: loading (`module`). Layout as written by nvcc's fatbinary 11 to 13: a wrapper may point at a container of entries
//! (1 PTX, 2 cubin), each with a header, sizes, an architecture and compression flags. nvcc 13 packs PTX with zstd unless
//! asked otherwise (`--compress-mode`), and with LZ4 for `speed`, as older ones do.

use super::*;

const WRAPPER: u32 = 0x4662_43b1;
const CONTAINER: u32 = 0xba55_ed50;

/// The PTX an image holds that suits `arch` best.
pub unsafe fn ptx(image: *const u8, arch: u32) -> Result<String, Status> {
    if image.is_null() {
        return Err(INVALID_VALUE);
    }
    match image.cast::<u32>().read_unaligned() {
        WRAPPER => {
            let at = image.add(8).cast::<*const u8>().read_unaligned();
            if at.is_null() { Err(INVALID_IMAGE) } else { container(at, arch) }
        }
        CONTAINER => container(image, arch),
        0x464c_457f => Err(NO_BINARY),
        _ => CStr::from_ptr(image.cast()).to_str().map(str::to_string).map_err(|_| INVALID_IMAGE),
    }
}

unsafe fn container(at: *const u8, arch: u32) -> Result<String, Status> {
    if at.cast::<u32>().read_unaligned() != CONTAINER {
        return Err(INVALID_IMAGE);
    }
    let header = at.add(6).cast::<u16>().read_unaligned() as usize;
    let size = at.add(8).cast::<u64>().read_unaligned() as usize;
    let body = std::slice::from_raw_parts(at.add(header), size);
    let word = |o: usize| -> Option<u32> { Some(u32::from_le_bytes(body.get(o..o + 4)?.try_into().ok()?)) };
    let long = |o: usize| -> Option<u64> { Some(u64::from_le_bytes(body.get(o..o + 8)?.try_into().ok()?)) };
    let (mut from, mut best) = (0usize, None::<(u32, usize, usize, usize, u64, usize)>);
    while let (Some(kind), Some(head), Some(bytes)) = (word(from), word(from + 4), long(from + 8)) {
        let (head, bytes) = (head as usize, bytes as usize);
        let found = word(from + 28).unwrap_or(0);
        if kind & 0xffff == 1 && found <= arch && best.is_none_or(|(a, ..)| found > a) {
            let stored = word(from + 16).unwrap_or(0) as usize;
            let flags = long(from + 40).unwrap_or(0);
            let full = long(from + 56).unwrap_or(0) as usize;
            best = Some((found, from + head, bytes, stored, flags, full));
        }
        if bytes == 0 && head == 0 {
            break;
        }
        from += head + bytes;
    }
    let Some((_, start, bytes, stored, flags, full)) = best else { return Err(NO_BINARY) };
    let bytes = body.get(start..start + bytes).ok_or(INVALID_IMAGE)?;
    let text = if flags & 0x2000 != 0 {
        unpack_lz4(bytes.get(..stored).ok_or(INVALID_IMAGE)?, full).ok_or(INVALID_IMAGE)?
    } else if flags & 0x8000 != 0 {
        unpack_zstd(bytes.get(..stored).ok_or(INVALID_IMAGE)?).ok_or(INVALID_IMAGE)?
    } else {
        bytes.to_vec()
    };
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    String::from_utf8(text[..end].to_vec()).map_err(|_| INVALID_IMAGE)
}

/// A zstd frame. `None` when it is damaged.
fn unpack_zstd(from: &[u8]) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut out = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(from).ok()?.read_to_end(&mut out).ok()?;
    Some(out)
}

/// An LZ4 block of known size. `None` when it is damaged.
pub fn unpack_lz4(from: &[u8], size: usize) -> Option<Vec<u8>> {
    let (mut out, mut at) = (Vec::with_capacity(size), 0);
    let long = |at: &mut usize, n: usize| -> Option<usize> {
        let mut n = n;
        if n == 15 {
            loop {
                let b = *from.get(*at)?;
                *at += 1;
                n += b as usize;
                if b != 255 {
                    break;
                }
            }
        }
        Some(n)
    };
    while at < from.len() {
        let token = from[at];
        at += 1;
        let literals = long(&mut at, (token >> 4) as usize)?;
        out.extend_from_slice(from.get(at..at + literals)?);
        at += literals;
        if at >= from.len() {
            break;
        }
        let back = u16::from_le_bytes([*from.get(at)?, *from.get(at + 1)?]) as usize;
        at += 2;
        let n = long(&mut at, (token & 15) as usize)? + 4;
        for _ in 0..n {
            let b = *out.get(out.len().checked_sub(back)?)?;
            out.push(b);
        }
    }
    (out.len() == size).then_some(out)
}
