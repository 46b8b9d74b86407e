//! q, k and v in one launch: for few rows a norm, product, rotary embedding, the write to the pages. Oracle:
//! engine/backend/cpu: norms.rs, matmul, rope.rs, kv_cache.rs.

use engine::Result;
use engine::backend::cpu::kv_cache::{KvDataMut, KvShape, kv_write};
use engine::backend::cpu::matmul;
use engine::backend::cpu::matrix::{Matrix, WeightData};
use engine::backend::cpu::norms::rms_norm;
use engine::backend::cpu::rope::{Angles, rope};
use engine::backend::cuda::ops::fused::{InputNorm, QkvOutput, section_ends};
use engine::backend::cuda::ops::linear::{Linear, Work as SplitMemory};
use engine::backend::cuda::pack;
use engine::graph::Rotary;
use engine::graph::builder::PAGE_SIZE;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, encode};
use super::linear::{split_memory, weights};
use super::norm_linear::{EPS, limits, norm_weight};

pub const OP: Op = Op { name: "qkv", cases, shapes };

#[derive(Clone, Copy)]
struct Row {
    dtype: DType,
    /// Tokens of the batch and of the bucket.
    tokens: (usize, usize),
    /// (num_heads, num_kv_heads, head_dim).
    heads: (usize, usize, usize),
    k: usize,
    norm: bool,
    /// By the kernels that sum in one order.
    alike: bool,
    bias: bool,
    /// Frequencies that take each component of a position; none: there is one component.
    sections: &'static [usize],
    /// Standard deviation of x.
    spread: f32,
}

impl Row {
    fn case(self, what: &str) -> Case {
        let Row { dtype, tokens: (live, tokens), heads: (h, hk, d), k, norm, alike, bias, sections, spread } = self;
        let (norm, bias) = (if norm { "norm, " } else { "" }, if bias { " and bias" } else { "" });
        let what = if alike { format!("{what}alike, ") } else { what.to_string() };
        let parts = if sections.is_empty() { String::new() } else { format!(", sections {sections:?}") };
        let name = format!(
            "{} {what}{norm}{live} of [{tokens}, {k}] by {spread}, {h} heads of {d} and {hk} KV heads{bias}{parts}",
            dtype.name()
        );
        Case::new(name, move |gpu| build(gpu, self)).sized(self.work())
    }

    /// One component, no norm, no bias.
    fn new(dtype: DType, tokens: (usize, usize), heads: (usize, usize, usize), k: usize) -> Row {
        Row { dtype, tokens, heads, k, norm: false, alike: false, bias: false, sections: &[], spread: 1.0 }
    }

    fn features(&self) -> usize {
        let (h, hk, d) = self.heads;
        (h + 2 * hk) * d
    }

    fn work(&self) -> Work {
        let (Row { dtype, tokens: (live, _), k, .. }, n) = (*self, self.features());
        Work {
            bytes: ((live * k + n * k + live * n) * dtype.size() + 8 * live) as u64,
            flops: 2 * (live * n * k) as u64,
        }
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for (norm, most) in [(true, 8), (false, 16)] {
            let row = |tokens, heads, k| Row { norm, ..Row::new(dtype, tokens, heads, k) };
            for (tokens, heads, k) in [
                ((1, 1), (4, 2, 64), 100),
                ((2, 2), (2, 1, 96), 65),
                ((5, 7), (4, 1, 128), 72),
                ((3, 4), (2, 2, 80), 40),
                // Pairs of one vector in two heads; more heads than fit a tile; one pair a head.
                ((most, most), (4, 2, 14), 48),
                ((5, 8), (3, 3, 20), 587),
                ((3, 3), (9, 3, 2), 33),
                ((2, 8), (4, 4, 12), 36),
                // k split among blocks.
                ((3, 4), (2, 1, 64), 3100),
                ((0, 4), (2, 1, 64), 64),
                // Wide.
                ((2, 2), (80, 20, 128), 40),
            ] {
                all.push(row(tokens, heads, k).case(""));
                all.push(Row { bias: true, ..row(tokens, heads, k + 1) }.case(""));
            }
            // Two and three components; an empty section; sections that end within a block's columns.
            for (tokens, heads, sections) in [
                ((5, 7), (4, 2, 128), [16, 24, 24].as_slice()),
                ((most, most), (3, 1, 20), &[2, 4, 4]),
                ((3, 4), (2, 2, 64), &[20, 0, 12]),
                ((2, 2), (2, 1, 96), &[22, 26]),
            ] {
                all.push(Row { sections, ..row(tokens, heads, 72) }.case(""));
            }
            if norm {
                all.push(Row { spread: 15000.0, ..row((4, 4), (2, 1, 64), 1000) }.case(""));
            }
        }
        // Of more rows: each size of tile, one row over it, one row less.
        for (tokens, heads, k) in [
            ((17, 17), (4, 2, 64), 100),
            ((31, 32), (2, 1, 96), 65),
            ((33, 33), (4, 2, 14), 48),
            ((64, 64), (3, 3, 20), 587),
            ((65, 72), (2, 2, 80), 40),
            ((127, 127), (4, 4, 12), 36),
            ((129, 129), (4, 1, 128), 72),
            ((130, 300), (9, 3, 2), 33),
            ((300, 300), (2, 1, 64), 72),
            ((0, 40), (2, 1, 64), 64),
            // k split among blocks.
            ((20, 20), (2, 1, 64), 1100),
            ((35, 70), (4, 1, 14), 1100),
            // About as many whole tiles as multiprocessors, of each of the two large kinds.
            ((767, 767), (61, 12, 20), 72),
            ((1270, 1270), (75, 4, 30), 40),
        ] {
            all.push(Row { bias: true, ..Row::new(dtype, tokens, heads, k) }.case(""));
        }
        for (tokens, heads, sections) in [
            ((40, 40), (4, 2, 128), [16, 24, 24].as_slice()),
            ((67, 130), (3, 1, 20), &[2, 4, 4]),
            ((17, 24), (2, 2, 64), &[20, 0, 12]),
            ((129, 129), (2, 1, 96), &[22, 26]),
        ] {
            all.push(Row { sections, ..Row::new(dtype, tokens, heads, 72) }.case(""));
        }
        // Few rows as well, where the tiles shall be those of many.
        for tokens in [1, 7, 16, 70] {
            all.push(Row { alike: true, ..Row::new(dtype, (tokens, tokens), (4, 2, 20), 1100) }.case(""));
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for (model, heads, k, bias, sections) in [
        ("Llama-3.1-8B, Mistral-7B ", (32, 8, 128), 4096, false, [].as_slice()),
        ("Qwen2-VL-7B ", (28, 4, 128), 3584, true, &[16, 24, 24]),
        ("SmolVLM-256M ", (9, 3, 64), 576, false, &[]),
    ] {
        for tokens in [1, 4, 8, 16, 64, 1024] {
            let row = Row::new(DType::Bf16, (tokens, tokens), heads, k);
            all.push(Row { norm: tokens <= 8, bias, sections, ..row }.case(model));
        }
    }
    // Every tile at a size that the software GPU counts: on about as many multiprocessors as there are.
    for dtype in FLOATS {
        for (what, tokens, heads, k) in [
            ("tiles of 32 rows, ", 32, (4, 2, 128), 4096),
            ("tiles of 64 rows, ", 64, (4, 2, 128), 4096),
            ("tiles of 128x128, ", 1024, (9, 2, 128), 128),
            ("tiles of 128x256, ", 1024, (18, 4, 128), 128),
        ] {
            all.push(Row::new(dtype, (tokens, tokens), heads, k).case(what));
        }
    }
    all
}

fn build(gpu: &Gpu, row: Row) -> Result<Instance> {
    let Row { dtype, tokens: (live, tokens), heads: (heads, kv_heads, head_dim), k, spread, .. } = row;
    let (n, q_width, kv_width) = (row.features(), heads * head_dim, kv_heads * head_dim);
    let mut numbers = Numbers::new((tokens * 31 + n * 7 + k) as u64);
    let x = numbers.normals(dtype, live * k, spread);
    let (g, dg) = norm_weight(gpu, &mut numbers, dtype, k, 0.5)?;
    let parts = [q_width, kv_width, kv_width].map(|n| weights(&mut numbers, dtype, n, k));
    let bias = row.bias.then(|| numbers.normals(DType::F32, n, 1.0));

    let dx = gpu.in_place(dtype, &x, tokens, k)?;
    let mut packed = vec![0; n.div_ceil(pack::PANEL_ROWS) * pack::panel_bytes(k)];
    for (i, out) in packed.chunks_exact_mut(pack::panel_bytes(k)).enumerate() {
        pack::pack_qkv_panel("w", parts.each_ref().map(|(_, tensor)| tensor), head_dim, dtype, i, out)?;
    }
    let dw = gpu.bytes(&packed)?;
    let in_order = |b: &Vec<f32>| (0..n).map(|i| b[pack::qkv_row(i, head_dim, q_width + kv_width)]).collect::<Vec<_>>();
    let db = bias.as_ref().map(|b| gpu.vector(&in_order(b))).transpose()?;
    let y = gpu.output(dtype, tokens, live, q_width)?;
    let count = gpu.count(live)?;
    let memory = split_memory(gpu, tokens, n, k)?;

    let components = row.sections.len().max(1);
    let position = |i| if i == 0 { 100_003 } else { numbers.below(5000) as i32 };
    let positions: Vec<i32> = (0..components * live).map(position).collect();
    let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 10000f32.powf(-(i as f32) / (head_dim / 2) as f32)).collect();
    let rotary = match row.sections {
        [] => Rotary::new(inv_freq.as_slice().into()),
        sections => Rotary::in_sections(inv_freq.as_slice().into(), sections).expect("half of a head"),
    };
    // Every token but one has a slot, out of order.
    let pages = live.div_ceil(PAGE_SIZE) + 1;
    let slots: Vec<i32> = (0..live).map(|t| if t == 1 { -1 } else { (pages * PAGE_SIZE - 1 - t) as i32 }).collect();
    let shape = KvShape { kv_heads, head_dim, page_size: PAGE_SIZE };
    let before = numbers.normals(dtype, pages * shape.page_elements(), 1.0);
    let cache = gpu.output_with_stride(dtype, 1, 1, before.len(), before.len())?;
    cache.slice().copy_from_host(&gpu.stream, &encode(dtype, &before))?;
    let (dpositions, dslots) = (gpu.ints_in(&positions, components * tokens)?, gpu.ints_in(&slots, tokens)?);
    let dfreq = gpu.vector(&inv_freq)?;

    let op = Linear {
        dtype,
        x: dx.slice(),
        x_stride: dx.ld(),
        weight: dw.all(),
        bias: db.as_ref().map(|b| b.all()),
        activation: None,
        residual: None,
        y: y.slice(),
        y_stride: y.ld(),
        output: dtype,
        rows: tokens,
        n,
        k,
        num_rows: Some(count.all()),
        work: memory.as_ref().map(|(partial, arrived)| SplitMemory { partial: partial.all(), arrived: arrived.all() }),
    };
    let norm = InputNorm { weight: dg.all(), eps: EPS };
    let output = QkvOutput {
        heads,
        kv_heads,
        head_dim,
        positions: dpositions.all(),
        inv_freq: dfreq.all(),
        components,
        ends: section_ends(&rotary).expect("even sections"),
        cache: cache.slice(),
        slot_mapping: dslots.all(),
    };
    let launch = match row.alike {
        true => op.prepare_qkv_alike(&gpu.cuda, &output)?,
        false => op.prepare_qkv(&gpu.cuda, row.norm.then_some(&norm), &output)?,
    };
    let made = std::rc::Rc::new(move || -> Result<[Vec<f32>; 3]> {
        let mut input = x.clone();
        if row.norm && live > 0 {
            rms_norm(&mut input, &x, live, k, &g, EPS)?;
        }
        let mut bias = bias.as_deref();
        let mut all = [Vec::new(), Vec::new(), Vec::new()];
        for (y, ((w, _), n)) in all.iter_mut().zip(parts.iter().zip([q_width, kv_width, kv_width])) {
            let own = bias.map(|b| b.split_at(n));
            bias = own.map(|(_, rest)| rest);
            *y = vec![0.0; live * n];
            if live > 0 {
                let w = Matrix { n, k, data: WeightData::F32(w) };
                matmul::linear(y, &input, live, &w, own.map(|(own, _)| own))?;
            }
        }
        let angles = Angles {
            positions: &positions,
            components,
            inv_freq: rotary.inv_freq(),
            component: rotary.component(),
            scaling: 1.0,
        };
        rope(&mut all[0], &angles, heads, head_dim)?;
        rope(&mut all[1], &angles, kv_heads, head_dim)?;
        Ok(all)
    });
    let limits = |elements| limits(dtype, dtype, elements);
    // Of the pages most elements are as before.
    let pages_limits = Limits { of_rms: 3e-2, ..limits(before.len()) };
    let q = made.clone();
    Ok(Instance::new(vec![launch], row.work())
        .expect(&y, limits(live * q_width), move || {
            let [q, _, _] = q()?;
            Ok(q)
        })
        .expect(&cache, pages_limits, move || {
            let ([_, k, v], mut want) = (made()?, before);
            kv_write(KvDataMut::F32(&mut want), &k, &v, &slots, shape)?;
            Ok(want)
        }))
}

#[test]
fn qkv() {
    super::harness::check(&OP);
}
