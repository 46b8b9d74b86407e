//! A JPEG decoder whose pixels are those of libjpeg-turbo, and so Pillow's.
//!
//! In: a JPEG file. Out: size, EXIF and XMP blocks, RGB pixels. Owns: markers, frames, scans, colour models: baseline,
//! extended and progressive Huffman-coded files of 8 bits with one, three or four components.
//! Not here: orientation (`exif.rs`), limits (`decode.rs`). Source: ITU-T T.81; libjpeg's choices where that is silent.
//!
//! Pure Rust, so that bytes from anywhere can neither corrupt memory nor leave through `longjmp`; a second thread
//! transforms blocks while the first one decodes them.

mod color;
mod huffman;
mod idct;
mod pipeline;
mod progressive;
mod render;
mod scan;
mod upsample;

pub(super) use color::{under_ink, ycbcr};

use color::ColorModel;
use huffman::{HuffmanTable, TableKind, TableSpec, ZIGZAG, standard_table};
use progressive::Band;
use scan::{Block, Tables};

/// Why a JPEG cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JpegError {
    /// The file ends early.
    Truncated(String),
    /// The file contradicts itself.
    Damaged(String),
    /// A kind of JPEG that is not decoded here.
    Unsupported(String),
}

impl JpegError {
    fn damaged(text: &str) -> JpegError {
        JpegError::Damaged(text.to_string())
    }
}

/// A component of a frame.
#[derive(Debug, Clone)]
pub(super) struct Component {
    id: u8,
    /// Sampling factors: blocks of an MCU, across and down.
    h: usize,
    v: usize,
    /// Blocks, whole MCUs.
    blocks_w: usize,
    blocks_h: usize,
    /// Blocks that hold samples of the image.
    real_w: usize,
    real_h: usize,
    /// Samples.
    width: usize,
    height: usize,
    /// Index of the quantisation table, and the table in natural order once a scan has begun.
    quant_index: usize,
    quant: Block,
    has_quant: bool,
}

impl Default for Component {
    fn default() -> Component {
        Component {
            id: 0,
            h: 1,
            v: 1,
            blocks_w: 0,
            blocks_h: 0,
            real_w: 0,
            real_h: 0,
            width: 0,
            height: 0,
            quant_index: 0,
            quant: [0; 64],
            has_quant: false,
        }
    }
}

/// What an SOF segment says.
#[derive(Debug, Clone, Default)]
pub(super) struct Frame {
    width: usize,
    height: usize,
    is_progressive: bool,
    /// Largest sampling factors, and MCUs across and down.
    max_h: usize,
    max_v: usize,
    mcus_x: usize,
    mcus_y: usize,
    components: Vec<Component>,
}

/// What an SOS segment says.
struct ScanHeader {
    /// Indices of the frame's components.
    components: Vec<usize>,
    tables: Vec<Tables>,
    band: Band,
    /// Where the entropy-coded data start.
    data: usize,
}

impl ScanHeader {
    /// The tables for DC and AC of a sequential scan, which has both for every component.
    fn sequential_tables(&self) -> Vec<(&HuffmanTable, &HuffmanTable)> {
        self.tables.iter().filter_map(|tables| tables.dc.as_ref().zip(tables.ac.as_ref())).collect()
    }
}

/// A JPEG whose header has been read, up to its first scan.
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    /// Behind the last marker code that was read.
    position: usize,
    frame: Frame,
    quant: [Option<Block>; 4],
    dc: [Option<TableSpec>; 4],
    ac: [Option<TableSpec>; 4],
    restart_interval: usize,
    has_jfif: bool,
    adobe_transform: Option<u8>,
    /// Bodies of the EXIF segments, put together, and the XMP packet.
    pub exif: Vec<u8>,
    pub xmp: Vec<u8>,
}

impl<'a> Decoder<'a> {
    /// Reads the header.
    pub fn new(bytes: &'a [u8]) -> Result<Decoder<'a>, JpegError> {
        let mut decoder = Decoder {
            bytes,
            position: 2,
            frame: Frame::default(),
            quant: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
            has_jfif: false,
            adobe_transform: None,
            exif: Vec::new(),
            xmp: Vec::new(),
        };
        loop {
            match decoder.next_marker() {
                None => return Err(JpegError::Truncated("it ends in its header".into())),
                Some(0xda) if decoder.frame.components.is_empty() => {
                    return Err(JpegError::damaged("image data come before the frame header"));
                }
                Some(0xda) => return Ok(decoder),
                Some(0xd9) => return Err(JpegError::damaged("it has no image data")),
                Some(code) => decoder.segment(code)?,
            }
        }
    }

    /// Pixels across and down.
    pub fn size(&self) -> (usize, usize) {
        (self.frame.width, self.frame.height)
    }

    /// Decodes the image, `[height, width, 3]`. With `allow_truncated`, what is missing or senseless stays grey.
    pub fn decode(mut self, allow_truncated: bool) -> Result<Vec<u8>, JpegError> {
        let model = self.color_model();
        let header = self.scan_header()?;
        if !self.frame.is_progressive && header.components.iter().copied().eq(0..self.frame.components.len()) {
            return pipeline::streamed(&self, model, &header, allow_truncated);
        }
        pipeline::buffered(&mut self, model, header, allow_truncated)
    }

    /// The code of the next marker; bytes in front of it are skipped, as libjpeg does.
    fn next_marker(&mut self) -> Option<u8> {
        loop {
            let rest = self.bytes.get(self.position..)?;
            self.position += rest.iter().position(|&byte| byte == 0xff)?;
            while *self.bytes.get(self.position)? == 0xff {
                self.position += 1;
            }
            let code = self.bytes[self.position];
            self.position += 1;
            if code != 0 {
                return Some(code);
            }
        }
    }

    /// The body of the segment whose marker was just read.
    fn body(&mut self) -> Result<&'a [u8], JpegError> {
        let short = || JpegError::Truncated("it ends in a header segment".into());
        let rest = self.bytes.get(self.position..).ok_or_else(short)?;
        let length = rest.first_chunk::<2>().map(|b| usize::from(u16::from_be_bytes(*b))).ok_or_else(short)?;
        if length < 2 {
            return Err(JpegError::damaged("a segment has no room for its own length"));
        }
        let body = rest.get(2..length).ok_or_else(short)?;
        self.position += length;
        Ok(body)
    }

    fn segment(&mut self, code: u8) -> Result<(), JpegError> {
        match code {
            // Markers without a body: TEM, SOI, stray restart markers.
            0x01 | 0xd0..=0xd8 => Ok(()),
            0xc0..=0xc2 => {
                let body = self.body()?;
                self.frame_header(body, code == 0xc2)
            }
            0xc4 => {
                let body = self.body()?;
                self.huffman_tables(body)
            }
            0xc3 | 0xc5..=0xc7 | 0xcb | 0xcd..=0xcf => {
                Err(JpegError::Unsupported("a lossless or hierarchical JPEG".into()))
            }
            0xc9 | 0xca => Err(JpegError::Unsupported("an arithmetic-coded JPEG".into())),
            0xdb => {
                let body = self.body()?;
                self.quantization_tables(body)
            }
            0xdd => {
                if let Some(interval) = self.body()?.first_chunk::<2>() {
                    self.restart_interval = usize::from(u16::from_be_bytes(*interval));
                }
                Ok(())
            }
            _ => {
                let body = self.body()?;
                self.application(code, body);
                Ok(())
            }
        }
    }

    fn application(&mut self, code: u8, body: &[u8]) {
        match code {
            0xe0 if body.starts_with(b"JFIF\0") && body.len() >= 14 => self.has_jfif = true,
            0xe1 if body.starts_with(b"Exif\0\0") => self.exif.extend_from_slice(&body[6..]),
            0xe1 => {
                if let Some(packet) = body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    self.xmp = packet.to_vec();
                }
            }
            0xee if body.starts_with(b"Adobe") && body.len() >= 12 => self.adobe_transform = Some(body[11]),
            _ => {}
        }
    }

    fn quantization_tables(&mut self, mut body: &[u8]) -> Result<(), JpegError> {
        while let Some((&head, rest)) = body.split_first() {
            let (is_wide, index) = (head >> 4 != 0, usize::from(head & 15));
            let length = if is_wide { 128 } else { 64 };
            let values = rest.get(..length).ok_or_else(|| JpegError::damaged("a quantisation table is cut off"))?;
            let slot = self.quant.get_mut(index).ok_or_else(|| JpegError::damaged("a fifth quantisation table"))?;
            let mut table = [0i16; 64];
            for (k, &at) in ZIGZAG.iter().enumerate() {
                let value =
                    if is_wide { u16::from_be_bytes([values[2 * k], values[2 * k + 1]]) } else { values[k].into() };
                table[usize::from(at)] = value as i16;
            }
            *slot = Some(table);
            body = &rest[length..];
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut body: &[u8]) -> Result<(), JpegError> {
        let cut = || JpegError::damaged("a Huffman table is cut off");
        while let Some((&head, rest)) = body.split_first() {
            let counts = *rest.first_chunk::<16>().ok_or_else(cut)?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            if total > 256 {
                return Err(JpegError::damaged("a Huffman table has more than 256 codes"));
            }
            let symbols = rest[16..].get(..total).ok_or_else(cut)?.to_vec();
            let slots = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let slot =
                slots.get_mut(usize::from(head & 15)).ok_or_else(|| JpegError::damaged("a fifth Huffman table"))?;
            *slot = Some(TableSpec { counts, symbols });
            body = &rest[16 + total..];
        }
        Ok(())
    }

    fn frame_header(&mut self, body: &[u8], is_progressive: bool) -> Result<(), JpegError> {
        if !self.frame.components.is_empty() {
            return Err(JpegError::damaged("it has two frame headers"));
        }
        let &[precision, h1, h0, w1, w0, count, ref rest @ ..] = body else {
            return Err(JpegError::damaged("its frame header is cut off"));
        };
        let (width, height) = (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
        if precision != 8 {
            return Err(JpegError::Unsupported(format!("a JPEG of {precision} bits a sample (8 are supported)")));
        }
        if width == 0 || height == 0 {
            return Err(JpegError::Damaged(format!("its size is {width}x{height}")));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(JpegError::Unsupported(format!("a JPEG of {count} components (1, 3 or 4 are supported)")));
        }
        if rest.len() != usize::from(count) * 3 {
            return Err(JpegError::damaged("its frame header has a wrong length"));
        }
        let mut components = Vec::with_capacity(4);
        for part in rest.chunks_exact(3) {
            // A single component is never interleaved, whatever its factors say.
            let (h, v) = if count == 1 { (1, 1) } else { (usize::from(part[1] >> 4), usize::from(part[1] & 15)) };
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(JpegError::Damaged(format!("a component has sampling factors {h}x{v}")));
            }
            components.push(Component { id: part[0], h, v, quant_index: usize::from(part[2]), ..Component::default() });
        }
        let max_h = components.iter().map(|c| c.h).max().unwrap_or(1);
        let max_v = components.iter().map(|c| c.v).max().unwrap_or(1);
        let (mcus_x, mcus_y) = (width.div_ceil(max_h * 8), height.div_ceil(max_v * 8));
        for component in &mut components {
            component.width = (width * component.h).div_ceil(max_h);
            component.height = (height * component.v).div_ceil(max_v);
            (component.real_w, component.real_h) = (component.width.div_ceil(8), component.height.div_ceil(8));
            (component.blocks_w, component.blocks_h) = (mcus_x * component.h, mcus_y * component.v);
        }
        self.frame = Frame { width, height, is_progressive, max_h, max_v, mcus_x, mcus_y, components };
        Ok(())
    }

    /// Reads an SOS segment and fixes the quantisation tables of its components.
    fn scan_header(&mut self) -> Result<ScanHeader, JpegError> {
        let body = self.body()?;
        let wrong = || JpegError::damaged("a scan header makes no sense");
        let (&count, rest) = body.split_first().ok_or_else(wrong)?;
        let count = usize::from(count);
        let (selectors, &[start, end, bits]) = rest.split_last_chunk::<3>().ok_or_else(wrong)?;
        if !(1..=4).contains(&count) || selectors.len() != count * 2 {
            return Err(wrong());
        }
        let progressive = self.frame.is_progressive;
        let band = Band {
            start: usize::from(start),
            end: usize::from(end),
            low: u32::from(bits & 15),
            refines: bits >> 4 != 0,
        };
        if progressive {
            let is_sane = if start == 0 { end == 0 } else { start <= end && end < 64 && count == 1 };
            if !is_sane || band.low > 13 || (band.refines && u32::from(bits >> 4) != band.low + 1) {
                return Err(wrong());
            }
        }
        let (mut components, mut tables) = (Vec::new(), Vec::new());
        for selector in selectors.chunks_exact(2) {
            let index = self.frame.components.iter().position(|c| c.id == selector[0]).ok_or_else(wrong)?;
            if components.contains(&index) {
                return Err(wrong());
            }
            let component = &mut self.frame.components[index];
            if !component.has_quant {
                let table = self.quant.get(component.quant_index).copied().flatten();
                component.quant = table.ok_or_else(|| JpegError::damaged("a quantisation table is missing"))?;
                component.has_quant = true;
            }
            let (dc, ac) = (usize::from(selector[1] >> 4), usize::from(selector[1] & 15));
            let needs_dc = !progressive || (start == 0 && !band.refines);
            let needs_ac = !progressive || start > 0;
            tables.push(Tables {
                dc: needs_dc.then(|| self.table(TableKind::Dc, dc)).transpose()?,
                ac: needs_ac.then(|| self.table(TableKind::Ac, ac)).transpose()?,
            });
            components.push(index);
        }
        let blocks: usize = components.iter().map(|&c| self.frame.components[c].h * self.frame.components[c].v).sum();
        if count > 1 && blocks > 10 {
            return Err(JpegError::damaged("an MCU has more than 10 blocks"));
        }
        Ok(ScanHeader { components, tables, band, data: self.position })
    }

    fn table(&self, kind: TableKind, index: usize) -> Result<HuffmanTable, JpegError> {
        let slots = if kind == TableKind::Dc { &self.dc } else { &self.ac };
        match slots.get(index).and_then(Option::as_ref) {
            Some(spec) => HuffmanTable::new(spec, kind),
            None => match standard_table(kind, index) {
                Some(spec) => HuffmanTable::new(&spec, kind),
                None => Err(JpegError::damaged("a Huffman table is missing")),
            },
        }
    }

    /// What the components mean, by the rules of libjpeg's `default_decompress_parms`.
    fn color_model(&self) -> ColorModel {
        let ids: Vec<u8> = self.frame.components.iter().map(|c| c.id).collect();
        match (ids.len(), self.adobe_transform) {
            (1, _) => ColorModel::Grey,
            (3, _) if self.has_jfif => ColorModel::YCbCr,
            (3, Some(0)) => ColorModel::Rgb,
            (3, None) if ids == *b"RGB" => ColorModel::Rgb,
            (3, _) => ColorModel::YCbCr,
            (_, None | Some(0)) => ColorModel::Cmyk,
            _ => ColorModel::Ycck,
        }
    }
}
