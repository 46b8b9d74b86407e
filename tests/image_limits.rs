//! Headers that declare 64250x64250 pixels are refused before memory is taken for them.
//!
//! The allocator counts, so this file holds one test only.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use engine::input::image::{DecodeOptions, decode};

struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; only a counter is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(layout.size(), Relaxed);
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(layout.size(), Relaxed);
        // SAFETY: passed on as it came.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIDE: u16 = 64250;

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn png_chunk(kind: &[u8], body: &[u8]) -> Vec<u8> {
    let named = [kind, body].concat();
    [&(body.len() as u32).to_be_bytes()[..], &named, &crc32(&named).to_be_bytes()].concat()
}

fn png() -> Vec<u8> {
    let side = u32::from(SIDE).to_be_bytes();
    let header = png_chunk(b"IHDR", &[&side[..], &side, &[8, 2, 0, 0, 0]].concat());
    [&b"\x89PNG\r\n\x1a\n"[..], &header, &png_chunk(b"IDAT", &[0; 4000]), &png_chunk(b"IEND", &[])].concat()
}

fn jpeg(kind: u8) -> Vec<u8> {
    let side = SIDE.to_be_bytes();
    let frame = [&[0xff, kind, 0, 17, 8][..], &side, &side, &[3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0]].concat();
    let scan = [0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 0, 0];
    [&[0xff, 0xd8][..], &frame, &scan, &[0; 4000]].concat()
}

fn gif() -> Vec<u8> {
    let side = SIDE.to_le_bytes();
    let frame = [&[0x2c, 0, 0, 0, 0][..], &side, &side, &[0x80, 0, 0, 0, 255, 255, 255, 2, 1, 0x44, 0]].concat();
    [&b"GIF89a"[..], &side, &side, &[0, 0, 0], &frame, b";"].concat()
}

/// A frame larger than the canvas, which alone is small.
fn gif_frame() -> Vec<u8> {
    let mut bytes = gif();
    bytes[6..10].copy_from_slice(&[1, 0, 1, 0]);
    bytes
}

fn bmp() -> Vec<u8> {
    let side = u32::from(SIDE).to_le_bytes();
    let header = [&40u32.to_le_bytes()[..], &side, &side, &[1, 0, 24, 0], &[0; 24]].concat();
    [&b"BM"[..], &[0; 8], &54u32.to_le_bytes(), &header, &[0; 4000]].concat()
}

fn webp() -> Vec<u8> {
    // An extended header with a canvas, then a lossless image that claims its largest size, 16384x16384.
    let canvas = (u32::from(SIDE) - 1).to_le_bytes();
    let extended = [&b"VP8X\x0a\0\0\0\0\0\0\0"[..], &canvas[..3], &canvas[..3]].concat();
    let image = [&b"VP8L\x08\0\0\0\x2f\xff\xff\xff\x0f\0\0\0"[..]].concat();
    let body = [&b"WEBP"[..], &extended, &image].concat();
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

fn tiff() -> Vec<u8> {
    let entry = |tag: u16, kind: u16, value: u32| {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &1u32.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let entries = [
        entry(256, 4, SIDE.into()),
        entry(257, 4, SIDE.into()),
        entry(258, 3, 8),
        entry(259, 3, 1),
        entry(262, 3, 1),
        entry(273, 4, 8),
        entry(277, 3, 1),
        entry(278, 4, SIDE.into()),
        entry(279, 4, 4000),
    ];
    let directory = [&(entries.len() as u16).to_le_bytes()[..], &entries.concat(), &[0; 4]].concat();
    [&b"II*\0\x08\0\0\0"[..], &directory, &[0; 4000]].concat()
}

#[test]
fn a_header_bomb_takes_no_memory() {
    let bombs = [
        ("PNG", png()),
        ("JPEG", jpeg(0xc0)),
        ("JPEG", jpeg(0xc2)),
        ("GIF", gif()),
        ("GIF", gif_frame()),
        ("BMP", bmp()),
        ("WebP", webp()),
        ("TIFF", tiff()),
    ];
    for (name, bytes) in bombs {
        assert!(bytes.len() < 5000);
        let before = TAKEN.load(Relaxed);
        let error = decode(&bytes, &DecodeOptions::default()).unwrap_err().to_string();
        let taken = TAKEN.load(Relaxed) - before;
        assert!(error.contains(&format!("the {name} has 64250x64250 pixels, more than the limit")), "{name}: {error}");
        assert!(taken < 1 << 20, "{name}: {taken} bytes taken");
    }
}
