//! Rope, alone, in place and with the write of keys and values to their pages. Oracle: engine/backend/cpu/rope.rs for
//! one position a token; the formula in float64 where a frequency chooses among several.

use engine::Result;
use engine::backend::cpu::kv_cache::{KvDataMut, KvShape, kv_write};
use engine::backend::cpu::rope::{self, rope};
use engine::backend::cuda::ops::rope::{Angles, Rope, RopeKeys};
use engine::graph::builder::PAGE_SIZE;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Output, Work, encode};

pub const OP: Op = Op { name: "rope", cases, shapes };

#[derive(Clone, Copy)]
struct Row {
    dtype: DType,
    /// Tokens of the batch and of the bucket.
    tokens: (usize, usize),
    /// (num_heads, num_kv_heads, head_dim); with KV heads keys and values go to their pages.
    heads: (usize, usize, usize),
    frequencies: usize,
    /// Position components.
    axes: usize,
    in_place: bool,
    scaling: f32,
}

fn case(what: &str, row: Row) -> Case {
    let ((live, tokens), (h, hk, d)) = (row.tokens, row.heads);
    let keys = if hk > 0 { format!(" and {hk} KV heads to pages") } else { String::new() };
    let place = if row.in_place { ", in place" } else { "" };
    let name = format!(
        "{} {what}{live} of {tokens} tokens, {h} heads of {d}{keys}, {} frequencies of {} axes, times {}{place}",
        row.dtype.name(),
        row.frequencies,
        row.axes,
        row.scaling
    );
    Case::new(name, move |gpu| build(gpu, row))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let mut add = |tokens, heads: (usize, usize, usize), frequencies, axes, in_place, scaling| {
            all.push(case("", Row { dtype, tokens, heads, frequencies, axes, in_place, scaling }));
        };
        for (h, hk, d) in
            [(4, 2, 12), (2, 1, 14), (3, 3, 20), (8, 2, 32), (2, 1, 64), (1, 1, 2), (2, 1, 72), (2, 2, 128)]
        {
            add((5, 7), (h, hk, d), d / 2, 1, false, 1.0);
            add((3, 3), (h, 0, d), d / 2, 1, true, 1.0);
        }
        // A part of the head, M-RoPE, a grid, a scale.
        add((4, 4), (2, 1, 64), 16, 1, false, 1.0);
        add((4, 5), (3, 1, 20), 6, 1, false, 1.25);
        add((6, 9), (4, 2, 128), 64, 3, false, 1.0);
        add((6, 9), (4, 0, 128), 64, 3, true, 1.0);
        add((6, 6), (2, 0, 80), 40, 2, true, 1.0);
        add((1, 1), (28, 4, 128), 64, 3, false, 1.0);
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for tokens in [1, 4, 16, 64, 1024] {
            let row = Row {
                dtype,
                tokens: (tokens, tokens),
                heads: (32, 8, 128),
                frequencies: 64,
                axes: 1,
                in_place: false,
                scaling: 1.0,
            };
            all.push(case("Llama-3.1-8B: ", row));
            all.push(case("Qwen2-VL-7B: ", Row { heads: (28, 4, 128), axes: 3, ..row }));
        }
    }
    all
}

/// What turns a token's heads.
struct Turn {
    positions: Vec<i32>,
    inv_freq: Vec<f32>,
    axis: Vec<i32>,
    axes: usize,
    scaling: f32,
}

impl Turn {
    /// `x` is `[tokens, heads, head_dim]`.
    fn apply(&self, x: &mut [f32], heads: usize, head_dim: usize) -> Result<()> {
        if self.axes == 1 {
            let angles = rope::Angles {
                positions: &self.positions,
                components: 1,
                inv_freq: &self.inv_freq,
                component: &[],
                scaling: self.scaling,
            };
            return rope(x, &angles, heads, head_dim);
        }
        let (tokens, half) = (self.positions.len() / self.axes, self.inv_freq.len());
        for (t, x) in x.chunks_exact_mut(heads * head_dim).enumerate() {
            for (i, (f, axis)) in self.inv_freq.iter().zip(&self.axis).enumerate() {
                let angle = f64::from(self.positions[*axis as usize * tokens + t] as f32 * f);
                let (sin, cos) = angle.sin_cos();
                let (sin, cos) = (sin * f64::from(self.scaling), cos * f64::from(self.scaling));
                for head in x.chunks_exact_mut(head_dim) {
                    let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                    head[i] = (a * cos - b * sin) as f32;
                    head[i + half] = (b * cos + a * sin) as f32;
                }
            }
        }
        Ok(())
    }
}

fn build(gpu: &Gpu, row: Row) -> Result<Instance> {
    let Row { dtype, axes, frequencies, scaling, .. } = row;
    let ((live, tokens), (heads, kv_heads, head_dim)) = (row.tokens, row.heads);
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let mut numbers = Numbers::new((width + live * 17 + axes) as u64);
    let x = numbers.normals(dtype, live * width, 1.0);
    let turn = Turn {
        // Far enough that an angle goes round thousands of times.
        positions: (0..axes * live).map(|i| if i == 0 { 100_003 } else { numbers.below(5000) as i32 }).collect(),
        inv_freq: (0..frequencies).map(|i| 10000f32.powf(-(i as f32) / frequencies as f32)).collect(),
        axis: (0..frequencies).map(|i| (i * axes / frequencies) as i32).collect(),
        axes,
        scaling,
    };
    // With keys, as packed weights leave them: both elements of a pair side by side.
    let pairs = |values: &[f32]| -> Vec<f32> {
        let at = |i: usize| match i % head_dim {
            e if e >= 2 * frequencies => i,
            e => i - e + e / 2 + e % 2 * frequencies,
        };
        (0..values.len()).map(|i| values[at(i)]).collect()
    };
    let dx = gpu.in_place(dtype, &if kv_heads > 0 { pairs(&x) } else { x.clone() }, tokens, width)?;
    let y = if row.in_place { dx.clone() } else { gpu.output(dtype, tokens, live, width)? };
    let (positions, inv_freq) = (gpu.ints_in(&turn.positions, axes * tokens)?, gpu.vector(&turn.inv_freq)?);
    let (axis, count) = (gpu.ints(&turn.axis)?, gpu.count(live)?);

    // Every token but one has a slot, out of order.
    let pages = live.div_ceil(PAGE_SIZE) + 1;
    let slots: Vec<i32> = (0..live).map(|t| if t == 1 { -1 } else { (pages * PAGE_SIZE - 1 - t) as i32 }).collect();
    let (k, v) = (numbers.normals(dtype, live * kv_width, 1.0), numbers.normals(dtype, live * kv_width, 1.0));
    let shape = KvShape { kv_heads, head_dim, page_size: PAGE_SIZE };
    let before = numbers.normals(dtype, pages * shape.page_elements(), 1.0);
    // The cache as one row: pages have no padding.
    let cache: Option<Output> = match kv_heads {
        0 => None,
        _ => {
            let cache = gpu.output_with_stride(dtype, 1, 1, before.len(), before.len())?;
            cache.slice().copy_from_host(&gpu.stream, &encode(dtype, &before))?;
            Some(cache)
        }
    };
    let (dk, dv) = (gpu.in_place(dtype, &pairs(&k), tokens, kv_width)?, gpu.in_place(dtype, &v, tokens, kv_width)?);
    let dslots = gpu.ints_in(&slots, tokens)?;
    let op = Rope {
        dtype,
        x: dx.slice(),
        x_stride: dx.ld(),
        y: y.slice(),
        y_stride: y.ld(),
        heads,
        head_dim,
        angles: Angles {
            positions: positions.all(),
            inv_freq: inv_freq.all(),
            frequencies,
            axes,
            axis: (axes > 1).then(|| axis.all()),
            scaling,
        },
        tokens,
        num_tokens: Some(count.all()),
        keys: cache.as_ref().map(|cache| RopeKeys {
            k: dk.slice(),
            k_stride: dk.ld(),
            v: dv.slice(),
            v_stride: dv.ld(),
            kv_heads,
            cache: cache.slice(),
            slot_mapping: dslots.all(),
        }),
    };
    let elements = 2 * live * (width + 2 * kv_width);
    let work = Work { bytes: (elements * dtype.size() + 4 * live * (axes + 1)) as u64, flops: 0 };
    let launches = vec![op.prepare(&gpu.cuda)?];
    // A difference of products has no relative accuracy.
    let limits = Limits { absolute: 1e-5, frobenius: 4e-3, ..Limits::rounding(dtype) };
    let turn = std::rc::Rc::new(turn);
    let mut instance = Instance::new(launches, work).expect(&y, limits, {
        let turn = turn.clone();
        move || {
            let mut want = x;
            turn.apply(&mut want, heads, head_dim)?;
            Ok(want)
        }
    });
    if let Some(cache) = cache {
        instance = instance.expect(&cache, limits, move || {
            let (mut k, mut want) = (k, before);
            turn.apply(&mut k, kv_heads, head_dim)?;
            kv_write(KvDataMut::F32(&mut want), &k, &v, &slots, shape)?;
            Ok(want)
        });
    }
    Ok(instance)
}

#[test]
fn rotary_embedding() {
    super::harness::check(&OP);
}
