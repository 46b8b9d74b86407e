//! Attention within segments. Oracle: engine/backend/cpu/attention/segments.rs.

use std::rc::Rc;

use engine::Result;
use engine::backend::cpu::attention::attention;
use engine::backend::cuda::DeviceBuffer;
use engine::backend::cuda::ops::attention::{Attention, work_bytes};
use engine::backend::cuda::ops::linear::Work as SplitMemory;
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

/// One launch.
#[derive(Clone)]
struct Row {
    dtype: DType,
    /// (num_heads, num_kv_heads, head_dim).
    heads: (usize, usize, usize),
    segments: Segments,
    /// Rows of the batch that belong to no segment.
    outside: usize,
    layout: Layout,
    /// Rows and segments that the bucket has beyond the batch.
    idle: usize,
    /// Without work memory one kernel takes segments of any length, and keys are not cut in pieces.
    work: bool,
}

impl Row {
    fn new(dtype: DType, heads: (usize, usize, usize), segments: &[(usize, usize)]) -> Row {
        let segments = segments.to_vec();
        Row { dtype, heads, segments, outside: 0, layout: Layout::Rows, idle: 2, work: true }
    }

    fn case(self, what: &str) -> Case {
        let Row { dtype, heads: (h, hk, d), segments, outside, layout, work, .. } = &self;
        let list = match segments.as_slice() {
            [first, ..] if segments.len() > 8 => format!("{} of {first:?}", segments.len()),
            list => format!("{list:?}"),
        };
        let layout = if *layout == Layout::Heads { "head-major, " } else { "" };
        let work = if *work { "" } else { ", no work memory" };
        let dtype = dtype.name();
        let name = format!("{dtype} {what}{layout}{h}/{hk} heads of {d}, segments {list}, {outside} outside{work}");
        Case::new(name, move |gpu| build(gpu, &self))
    }
}

fn square(lengths: &[usize]) -> Segments {
    lengths.iter().map(|&n| (n, n)).collect()
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let row = |heads, segments: &[(usize, usize)]| Row::new(dtype, heads, segments);
        // Every kernel: lengths of one, of a tile, just over one, none.
        for d in [64, 72, 80, 88, 96, 128] {
            for work in [false, true] {
                all.push(Row { work, ..row((2, 2, d), &square(&[1, 64, 0, 129])) }.case(""));
            }
            let layout = Layout::Heads;
            all.push(Row { layout, work: false, ..row((2, 1, d), &square(&[1, 64, 0, 130])) }.case(""));
        }
        // Short segments, and keys in pieces: one query, as many as a tile has rows, more; fewer keys than the others have.
        for d in [64, 80, 96, 128] {
            all.push(Row { layout: Layout::Heads, ..row((2, 1, d), &square(&[64; 3])) }.case(""));
            all.push(row((1, 1, d), &[(1, 5000)]).case(""));
            all.push(row((2, 1, d), &[(64, 2501)]).case(""));
            let uneven = [(3, 40), (0, 66), (7, 0), (33, 3900), (1, 1)];
            all.push(Row { outside: 3, ..row((2, 1, d), &uneven) }.case(""));
        }
        // A tile of rows that are padded, heads from odd vectors on.
        let layout = Layout::Heads;
        all.push(Row { layout, ..row((3, 3, 24), &square(&[5, 70])) }.case(""));
        all.push(Row { layout, ..row((2, 1, 136), &square(&[33])) }.case(""));
        // Heads that no kernel is made for, of even and odd width.
        for heads in
            [(4, 4, 12), (2, 1, 14), (3, 1, 20), (2, 2, 32), (1, 1, 1), (2, 1, 7), (2, 2, 40), (1, 1, 133), (1, 1, 256)]
        {
            all.push(Row { outside: 2, ..row(heads, &square(&[5, 70])) }.case(""));
        }
        // Shared keys, latents over patches, queries without keys, keys without queries.
        all.push(Row { work: false, ..row((4, 1, 96), &[(3, 100), (40, 47)]) }.case(""));
        all.push(Row { outside: 3, ..row((6, 2, 32), &[(7, 0), (0, 9), (3, 65), (0, 0), (1, 1)]) }.case(""));
        all.push(row((40, 1, 16), &[(2, 33), (9, 5)]).case(""));
        all.push(row((1, 1, 64), &square(&[2; 70])).case(""));
    }
    all
}

/// As the engine launches them: towers read head-major q, k and v, the rest rows.
fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let row = |heads, segments: &[(usize, usize)]| Row { idle: 0, ..Row::new(dtype, heads, segments) };
        let tower = |heads, lengths: &[usize]| Row { layout: Layout::Heads, ..row(heads, &square(lengths)) };
        all.push(tower((16, 16, 72), &[729]).case("SigLIP so400m/14 384: "));
        all.push(tower((16, 16, 64), &[577]).case("CLIP-L/14 336: "));
        all.push(tower((16, 16, 72), &[1225]).case("Idefics2-8b, patches: "));
        all.push(row((16, 4, 96), &[(64, 1289)]).case("Idefics2-8b, perceiver: "));
        all.push(row((16, 4, 96), &[(64, 1289); 5]).case("Idefics2-8b, perceiver: "));
        all.push(tower((16, 16, 80), &[1024]).case("Qwen2-VL ViT: "));
        all.push(tower((16, 16, 80), &[64; 16]).case("Qwen2.5-VL ViT, windows: "));
        all.push(tower((16, 16, 88), &[257; 4]).case("EVA-g 224: "));
        all.push(row((28, 28, 128), &[(64, 1024)]).case("MiniCPM-V resampler: "));
        // Without work memory, as --batch-invariant has it.
        all.push(Row { work: false, ..row((4, 4, 128), &[(64, 1024)]) }.case("MiniCPM-V resampler, few heads: "));
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

fn build(gpu: &Gpu, row: &Row) -> Result<Instance> {
    let Row { dtype, heads: (num_heads, num_kv_heads, head_dim), ref segments, outside, layout, idle, work } = *row;
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
    let (dcu_q, dcu_k) = (gpu.ints_in(&cu_q, cu_q.len() + idle)?, gpu.ints_in(&cu_k, cu_k.len() + idle)?);
    let (count, num_segments) = (gpu.count(live)?, gpu.count(segments.len())?);
    let rows = live + idle;
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
    let multiprocessors = gpu.cuda.device().multiprocessors() as usize;
    let need = work_bytes(&heads, rows, keys, segments.len() + idle, multiprocessors);
    let (partial, arrived) = (gpu.memory(need.partial_bytes)?, gpu.bytes(&vec![0; need.arrived_bytes])?);
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
        segments: segments.len() + idle,
        num_rows: Some(count.all()),
        num_segments: Some(num_segments.all()),
        work: work.then(|| SplitMemory { partial: partial.all(), arrived: arrived.all() }),
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

/// The same launch gives the same bits, and leaves its counters as it found them.
#[test]
fn pieces_are_deterministic() {
    let Some(gpu) = Gpu::open() else { return };
    let row = Row::new(DType::Bf16, (2, 1, 64), &[(64, 2501)]);
    let instance = build(&gpu, &row).unwrap();
    // A second run over the same counters must still be right.
    instance.launches[0].enqueue(&gpu.stream).unwrap();
    instance.check(&gpu).unwrap();
}
