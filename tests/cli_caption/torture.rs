//! Pictures that were made to break decoders, from Pillow's test suite (tests/data/torture, MIT-CMU): every file is
//! accounted for, and each refusal has its reason.

use std::collections::BTreeMap;

use crate::cli_support::data;
use crate::folder::Folder;

/// What becomes of each file: `Ok`, or words of the reason.
#[rustfmt::skip]
const EXPECTED: &[(&str, Result<(), &str>)] = &[
    ("00r0_gray_l.jp2", Err("the file is a JPEG 2000 image")),
    ("16bit.MM.deflate.tif", Ok(())),
    ("16bit.cropped.jp2", Err("the file is a JPEG 2000 image")),
    ("16bit.r.tif", Err("this kind of TIFF is not supported: lowest bit first")),
    ("16bit.s.tif", Err("this kind of TIFF is not supported: Gray(16) samples that are not 8- or 16-bit numbers")),
    ("anim_frame1.webp", Ok(())),
    ("background_outside_palette.gif", Err("image of 1x1 pixels")),
    ("bad_palette_entry.gpl", Err("the file is text")),
    ("badpalettesize.bmp", Err("the BMP is damaged or cut off: Format error decoding Bmp: Palette size 305402420 exceeds maximum size for BMP with bit count of 8")),
    ("badrle.bmp", Err("the BMP is damaged or cut off: Format error decoding Bmp: Corrupt RLE data")),
    ("badwidth.bmp", Err("the BMP is damaged or cut off: Format error decoding Bmp: Negative width (-127)")),
    ("black_and_white.ico", Err("the file is a Windows icon")),
    ("broken.png", Err("the PNG is damaged or cut off: ChunkType")),
    ("broken_data_stream.png", Err("the PNG is damaged or cut off: CRC error: expected 0xf41025f1 have 0xfa3fba12 while decoding ChunkType")),
    ("child_ifd_jpeg.tiff", Err("image of 1x1 pixels")),
    ("comment_after_last_frame.gif", Err("image of 1x1 pixels")),
    ("compression.tif", Err("this kind of TIFF is not supported: compression method Huffman is unsupported")),
    ("decompression_bomb.gif", Err("the GIF is damaged or cut off: Unexpected End of File")),
    ("decompression_bomb.ico", Err("the file is a Windows icon")),
    ("decompression_bomb_extents.gif", Ok(())),
    ("different_durations.png", Ok(())),
    ("dispose_bgnd_transparency.gif", Ok(())),
    ("empty.jpg", Err("the file is empty (0 bytes)")),
    ("exif_gps.jpg", Ok(())),
    ("g4_orientation_5.tif", Ok(())),
    ("hopper_16bit_qtables.jpg", Ok(())),
    ("hopper_gray_4bpp.tif", Ok(())),
    ("hopper_orientation_6.webp", Ok(())),
    ("hopper_rle8_grayscale.bmp", Ok(())),
    ("ignore_frame_size.mpo", Ok(())),
    ("invalid-exif.jpg", Ok(())),
    ("l2rgb_read.bmp", Err("the BMP is damaged or cut off: Format error decoding Bmp: Image too large (one of (3158064, 48) > soft limit of 65535)")),
    ("l_trns.png", Ok(())),
    ("libtiff_segfault.tif", Err("the TIFF is damaged or cut off: format error: inconsistent sizes encountered")),
    ("mmap_error.bmp", Ok(())),
    ("mode_palette_1bit_alpha.png", Ok(())),
    ("multipage.tiff", Ok(())),
    ("multipage_single_frame_loop.tiff", Err("the TIFF is damaged or cut off: format error: file contained a cycle in the list of IFDs")),
    ("multiple_exif.jpg", Err("image of 1x1 pixels")),
    ("no_palette.gif", Err("the GIF is damaged or cut off: no color table available for current frame")),
    ("no_palette_with_background.gif", Err("image of 1x1 pixels")),
    ("oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif", Err("the TIFF is damaged or cut off: failed to fill whole buffer")),
    ("ossfuzz-4836216264589312.pcx", Err("the file is data of an unknown format")),
    ("reallybig.bmp", Err("the BMP is damaged or cut off: Format error decoding Bmp: Image too large (one of (3000000, 2000000) > soft limit of 65535)")),
    ("rgb24jpeg.bmp", Err("the BMP is damaged or cut off: The decoder for Bmp does not support the format features JPEG compression")),
    ("seek_too_large.tif", Err("the TIFF is damaged or cut off: failed to fill whole buffer")),
    ("separate_planar_extra_samples.tiff", Err("the TIFF is damaged or cut off: corrupt deflate stream")),
    ("shortfile.bmp", Err("the BMP is damaged or cut off: failed to fill whole buffer")),
    ("syntax_num_frames_zero.png", Err("the PNG is damaged or cut off: IDAT or fdAT chunk is missing.")),
    ("timeout-bba4f2e026b5786529370e5dfe9a11b1bf991f07.blp", Err("the file is data of an unknown format")),
    ("trailer_loop.pdf", Err("the file is a PDF document")),
    ("transparent.webp", Ok(())),
    ("truncated_exif_dpi.jpg", Ok(())),
    ("truncated_jpeg.jpg", Err("the JPEG is truncated: it ends between two scans")),
    ("uint16_1_4660.tif", Ok(())),
    ("unbound_variable.jp2", Err("the file is a JPEG 2000 image")),
    ("uncompressed_la.png", Ok(())),
    ("xmp_tags_orientation.avif", Err("the file is an AVIF image")),
    ("zero_width.gif", Err("the GIF has a size of 0x32 pixels")),
];

#[test]
fn every_file_is_accounted_for() {
    let source = data().join("torture");
    let folder = Folder::new(&[]);
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&source).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "README.md" && name != "LICENSE" {
            folder.write(&name, std::fs::read(source.join(&name)).unwrap());
            names.push(name);
        }
    }
    folder.write("empty.jpg", b"");
    names.push("empty.jpg".to_string());
    names.sort();
    let expected: BTreeMap<&str, Result<(), &str>> = EXPECTED.iter().copied().collect();
    assert_eq!(names, expected.keys().copied().collect::<Vec<_>>());

    // By name, as some are no pictures by their extension.
    let args: Vec<&str> = names.iter().map(String::as_str).chain(["--sidecar", "txt"]).collect();
    let out = folder.caption(&args);
    assert_eq!(out.code, Some(3), "{out:?}");
    assert!(!out.stderr.contains("panicked"), "{out:?}");
    let captions = folder.captions("captions.jsonl");
    let failed: BTreeMap<String, String> = folder
        .lines("failed.jsonl")
        .iter()
        .map(|l| (l["path"].as_str().unwrap().to_string(), l["error"].as_str().unwrap().to_string()))
        .collect();
    assert_eq!(captions.len() + failed.len(), names.len());
    for (name, outcome) in expected {
        match outcome {
            Ok(()) => assert!(captions.contains_key(name), "{name}: {:?}", failed.get(name)),
            Err(reason) => {
                let got = failed.get(name).unwrap_or_else(|| panic!("{name} was captioned, expected: {reason}"));
                assert!(got.contains(reason), "{name}: expected {reason:?}, got {got:?}");
            }
        }
    }
    let num_ok = captions.len();
    assert!(out.stderr.contains(&format!("{num_ok} ok, 0 skipped, {} failed", failed.len())), "{out:?}");
}
