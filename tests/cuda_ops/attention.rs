//! Attention within segments. Oracle: engine/backend/cpu/attention/segments.rs.

use std::rc::Rc;

use engine::Result;
use engine::backend::cpu::attention::attention;
use engine::backend::cuda::DeviceBuffer;
use engine::backend::cuda::ops::attention::Attention;
use engine::graph::Heads;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, encode};

pub const OP: Op = Op { name: "attention", cases, shapes };

/// Queries and keys of each segment.
type Segments = Vec<(usize, usize)>;

/// How q, k and v lie.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// The heads of a row side by side.
    Rows,
    /// The rows of a head one after another, heads from an even row on.
    Heads,
}

/// `heads` is (num_heads, num_kv_heads, head_dim); `outside` rows of the batch belong to no segment.
fn case(what: &str, dtype: DType, heads: (usize, usize, usize), segments: &[(usize, usize)], outside: usize) -> Case {
    laid_out(what, dtype, heads, segments, outside, Layout::Rows)
}

fn head_major(what: &str, dtype: DType, heads: (usize, usize, usize), segments: &[(usize, usize)]) -> Case {
    laid_out(&format!("{what}head-major, "), dtype, heads, segments, 0, Layout::Heads)
}

fn laid_out(
    what: &str,
    dtype: DType,
    heads: (usize, usize, usize),
    segments: &[(usize, usize)],
    outside: usize,
    layout: Layout,
) -> Case {
    let (h, hk, d) = heads;
    let list =
        if segments.len() > 8 { format!("{} of {:?}", segments.len(), segments[0]) } else { format!("{segments:?}") };
    let name = format!("{} {what}{h}/{hk} heads of {d}, segments {list}, {outside} outside", dtype.name());
    let segments = segments.to_vec();
    Case::new(name, move |gpu| build(gpu, dtype, heads, &segments, outside, layout))
}

fn square(lengths: &[usize]) -> Segments {
    lengths.iter().map(|&n| (n, n)).collect()
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        // Every kernel: lengths of one, of a tile, just over one, none.
        for d in [64, 72, 80, 88, 96, 128] {
            all.push(case("", dtype, (2, 2, d), &square(&[1, 64, 0, 129]), 0));
            all.push(head_major("", dtype, (2, 1, d), &square(&[1, 64, 0, 130])));
        }
        // A tile of rows that are padded, heads from odd vectors on.
        all.push(head_major("", dtype, (3, 3, 24), &square(&[5, 70])));
        all.push(head_major("", dtype, (2, 1, 136), &square(&[33])));
        // Heads that no kernel is made for, of even and odd width.
        for (h, hk, d) in
            [(4, 4, 12), (2, 1, 14), (3, 1, 20), (2, 2, 32), (1, 1, 1), (2, 1, 7), (2, 2, 40), (1, 1, 133), (1, 1, 256)]
        {
            all.push(case("", dtype, (h, hk, d), &square(&[5, 70]), 2));
        }
        // Shared keys, latents over patches, queries without keys, keys without queries.
        all.push(case("", dtype, (4, 1, 96), &[(3, 100), (40, 47)], 0));
        all.push(case("", dtype, (6, 2, 32), &[(7, 0), (0, 9), (3, 65), (0, 0), (1, 1)], 3));
        all.push(case("", dtype, (40, 1, 16), &[(2, 33), (9, 5)], 0));
        all.push(case("", dtype, (1, 1, 64), &square(&[2; 70]), 0));
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        all.push(head_major("SigLIP so400m/14 384: ", dtype, (16, 16, 72), &square(&[729])));
        all.push(head_major("CLIP-L/14 336: ", dtype, (16, 16, 64), &square(&[577])));
        all.push(head_major("Idefics2-8b, patches: ", dtype, (16, 16, 72), &square(&[1225])));
        all.push(case("Idefics2-8b, perceiver: ", dtype, (16, 4, 96), &[(64, 1289); 5], 0));
        all.push(head_major("Qwen2-VL ViT: ", dtype, (16, 16, 80), &square(&[1024])));
        all.push(head_major("Qwen2.5-VL ViT, windows: ", dtype, (16, 16, 80), &square(&[64; 16])));
        all.push(head_major("EVA-g 224: ", dtype, (16, 16, 88), &square(&[257; 4])));
        all.push(case("MiniCPM-V resampler: ", dtype, (28, 28, 128), &[(64, 1024)], 0));
    }
    all
}

/// Sums before each segment, and in all.
fn cumulative(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let sums = lengths.scan(0, |at, n| {
        *at += n as i32;
        Some(*at)
    });
    std::iter::once(0).chain(sums).collect()
}

/// `[heads][room][head_dim]` on the device from `[rows, heads, head_dim]`; what follows a head's rows is not written.
fn heads_in(
    gpu: &Gpu,
    dtype: DType,
    values: &[f32],
    heads: usize,
    head_dim: usize,
    room: usize,
) -> Result<Rc<DeviceBuffer>> {
    let buffer = gpu.memory(heads * room * head_dim * dtype.size())?;
    for head in 0..heads {
        let rows = values.chunks_exact(heads * head_dim).flat_map(|row| &row[head * head_dim..][..head_dim]);
        let bytes = encode(dtype, &rows.copied().collect::<Vec<_>>());
        if !bytes.is_empty() {
            let start = head * room * head_dim * dtype.size();
            buffer.slice(start, bytes.len())?.copy_from_host(&gpu.stream, &bytes)?;
        }
    }
    Ok(buffer)
}

fn build(
    gpu: &Gpu,
    dtype: DType,
    (num_heads, num_kv_heads, head_dim): (usize, usize, usize),
    segments: &[(usize, usize)],
    outside: usize,
    layout: Layout,
) -> Result<Instance> {
    const IDLE: usize = 2;
    let heads = Heads { num_heads, num_kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5) };
    let (cu_q, cu_k) = (cumulative(segments.iter().map(|s| s.0)), cumulative(segments.iter().map(|s| s.1)));
    let live = cu_q[segments.len()] as usize + outside;
    let keys = cu_k[segments.len()] as usize;
    let (width, kv_width) = (num_heads * head_dim, num_kv_heads * head_dim);
    let mut numbers = Numbers::new((width * 7 + live + keys) as u64);
    let q = numbers.normals(dtype, live * width, 1.0);
    let k = numbers.normals(dtype, keys * kv_width, 1.0);
    let v = numbers.normals(dtype, keys * kv_width, 1.0);
    // The bucket has room for more rows and segments.
    let (dcu_q, dcu_k) = (gpu.ints_in(&cu_q, cu_q.len() + IDLE)?, gpu.ints_in(&cu_k, cu_k.len() + IDLE)?);
    let (count, num_segments) = (gpu.count(live)?, gpu.count(segments.len())?);
    let rows = live + IDLE;
    let room = rows.max(keys).next_multiple_of(2);
    let place = |values: &[f32], heads: usize, rows: usize| -> Result<(Rc<DeviceBuffer>, usize)> {
        match layout {
            Layout::Rows => {
                let rows = gpu.in_place(dtype, values, rows, heads * head_dim)?;
                Ok((rows.matrix.buffer.clone(), rows.ld()))
            }
            Layout::Heads => Ok((heads_in(gpu, dtype, values, heads, head_dim, room)?, head_dim)),
        }
    };
    let [(dq, q_stride), (dk, k_stride), (dv, v_stride)] =
        [place(&q, num_heads, rows)?, place(&k, num_kv_heads, keys)?, place(&v, num_kv_heads, keys)?];
    let out = gpu.output(dtype, rows, live, width)?;
    let op = Attention {
        dtype,
        heads,
        q: dq.all(),
        q_stride,
        k: dk.all(),
        k_stride,
        v: dv.all(),
        v_stride,
        head_stride: (layout == Layout::Heads).then_some(room * head_dim),
        out: out.slice(),
        out_stride: out.ld(),
        cu_q: dcu_q.all(),
        cu_k: dcu_k.all(),
        rows,
        keys,
        segments: segments.len() + IDLE,
        num_rows: Some(count.all()),
        num_segments: Some(num_segments.all()),
    };
    let pairs: usize = segments.iter().map(|s| s.0 * s.1).sum();
    let work =
        Work { bytes: (2 * (live * width + keys * kv_width) * dtype.size()) as u64, flops: (4 * pairs * width) as u64 };
    let largest = v.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    Ok(Instance::new(vec![op.prepare(&gpu.cuda)?], work).expect(
        &out,
        Limits::attention(dtype, largest.into()),
        move || {
            let mut want = vec![0.0; live * width];
            attention(&mut want, &q, &k, &v, &cu_q, &cu_k, &heads)?;
            Ok(want)
        },
    ))
}

#[test]
fn attention_within_segments() {
    super::harness::check(&OP);
}
