//! Keys and values to their pages. Oracle: engine/backend/cpu/kv_cache.rs. Nothing is computed, so the bits are equal.

use engine::Result;
use engine::backend::cpu::kv_cache::{KvDataMut, KvShape, kv_write};
use engine::backend::cuda::ops::kv_write::KvWrite;
use engine::graph::builder::PAGE_SIZE;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, encode};

pub const OP: Op = Op { name: "kv_write", cases, shapes };

/// `live` tokens of the batch in a bucket of `tokens`.
fn case(what: &str, dtype: DType, live: usize, tokens: usize, kv_heads: usize, head_dim: usize) -> Case {
    let name = format!("{} {what}{live} of {tokens} tokens, {kv_heads} heads of {head_dim}", dtype.name());
    Case::new(name, move |gpu| build(gpu, dtype, live, tokens, kv_heads, head_dim))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for (live, tokens, kv_heads, head_dim) in [
            (1, 1, 1, 1),
            (5, 8, 2, 12),
            (17, 17, 1, 14),
            (3, 3, 3, 20),
            (33, 40, 2, 32),
            (2, 2, 8, 128),
            (16, 16, 1, 72),
            (0, 2, 2, 64),
        ] {
            all.push(case("", dtype, live, tokens, kv_heads, head_dim));
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for tokens in [1, 4, 16, 64, 1024] {
            all.push(case("Llama-3.1-8B: ", dtype, tokens, tokens, 8, 128));
        }
    }
    all
}

fn build(gpu: &Gpu, dtype: DType, live: usize, tokens: usize, kv_heads: usize, head_dim: usize) -> Result<Instance> {
    let width = kv_heads * head_dim;
    let mut numbers = Numbers::new((width * 13 + live) as u64);
    let (k, v) = (numbers.normals(dtype, live * width, 1.0), numbers.normals(dtype, live * width, 1.0));
    let pages = live.div_ceil(PAGE_SIZE) + 1;
    // Every third token has no slot; the others go from the last slot backwards.
    let slots: Vec<i32> =
        (0..live).map(|t| if t % 3 == 2 { -1 - t as i32 } else { (pages * PAGE_SIZE - 1 - t) as i32 }).collect();
    let shape = KvShape { kv_heads, head_dim, page_size: PAGE_SIZE };
    let before = numbers.normals(dtype, pages * shape.page_elements(), 1.0);

    let (dk, dv) = (gpu.in_place(dtype, &k, tokens, width)?, gpu.in_place(dtype, &v, tokens, width)?);
    // The cache as one row: pages have no padding.
    let cache = gpu.output_with_stride(dtype, 1, 1, before.len(), before.len())?;
    cache.slice().copy_from_host(&gpu.stream, &encode(dtype, &before))?;
    let (dslots, count) = (gpu.ints_in(&slots, tokens)?, gpu.count(live)?);
    let op = KvWrite {
        dtype,
        k: dk.slice(),
        k_stride: dk.ld(),
        v: dv.slice(),
        v_stride: dv.ld(),
        kv_heads,
        head_dim,
        cache: cache.slice(),
        slot_mapping: dslots.all(),
        tokens,
        num_tokens: Some(count.all()),
    };
    let work = Work { bytes: (4 * live * width * dtype.size() + 4 * live + 4) as u64, flops: 0 };
    Ok(Instance::new(vec![op.prepare(&gpu.cuda)?], work).expect(&cache, Limits::EXACT, move || {
        let mut want = before;
        kv_write(KvDataMut::F32(&mut want), &k, &v, &slots, shape)?;
        Ok(want)
    }))
}

#[test]
fn keys_and_values_to_pages() {
    super::harness::check(&OP);
}
