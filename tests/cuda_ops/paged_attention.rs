//! Causal attention over pages: prefill, decode, mixed batches. Oracle: engine/backend/cpu/attention/paged.rs.
//!
//! Slots that hold no key of a context are not written, and pages before every window are not given: the software GPU
//! reports who reads them.

use engine::Result;
use engine::backend::cpu::attention::{PagedKv, paged_attention};
use engine::backend::cpu::kv_cache::KvData;
use engine::backend::cuda::ops::linear::Work as Memory;
use engine::backend::cuda::ops::paged_attention::{PagedAttention, work_bytes};
use engine::graph::Heads;
use engine::graph::builder::PAGE_SIZE;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, encode};

pub const OP: Op = Op { name: "paged_attention", cases, shapes };

#[derive(Clone)]
struct Row {
    dtype: DType,
    /// (num_heads, num_kv_heads, head_dim).
    heads: (usize, usize, usize),
    /// Queries and context of each sequence.
    seqs: Vec<(usize, usize)>,
    window: Option<usize>,
    /// Work memory, without which the prefill kernel does everything.
    work: bool,
    /// Rows and sequences of the bucket that the batch has not.
    idle: usize,
}

fn case(what: &str, row: Row) -> Case {
    let (h, hk, d) = row.heads;
    let seqs = &row.seqs;
    let list = if seqs.len() > 8 { format!("{} of {:?}", seqs.len(), seqs[0]) } else { format!("{seqs:?}") };
    let window = row.window.map_or(String::new(), |w| format!(", window {w}"));
    let kernels = if row.work { "" } else { ", prefill kernel alone" };
    let name = format!("{} {what}{h}/{hk} heads of {d}, (queries, context) {list}{window}{kernels}", row.dtype.name());
    Case::new(name, move |gpu| build(gpu, &row))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let mut add = |heads, seqs: &[(usize, usize)], window, work, idle| {
            all.push(case("", Row { dtype, heads, seqs: seqs.to_vec(), window, work, idle }));
        };
        for d in [64, 80, 96, 128] {
            // Chunks that start at, before and after a page boundary; then steps of one token each.
            add((4, 2, d), &[(1, 1), (33, 33), (20, 53), (1, 100), (2, 65)], None, true, 2);
            add((4, 1, d), &[(1, 1), (1, 16), (1, 17), (1, 200)], None, true, 0);
            add((2, 2, d), &[(70, 150)], Some(40), true, 1);
            add((2, 1, d), &[(1, 150), (1, 30)], Some(40), true, 0);
        }
        for (h, hk, d) in
            [(4, 2, 12), (2, 1, 14), (6, 2, 20), (4, 4, 32), (1, 1, 1), (2, 1, 7), (2, 1, 40), (1, 1, 256)]
        {
            add((h, hk, d), &[(1, 47), (17, 48), (3, 3)], None, true, 1);
            add((h, hk, d), &[(1, 47), (1, 80), (1, 1)], Some(33), true, 0);
        }
        // So many that no context is cut: every number of pages a warp from none to eight, windows that begin in a page.
        let ladder: Vec<(usize, usize)> = (0..28).map(|i| (1, 1 + 17 * i)).collect();
        for d in [64, 80, 96, 128, 20, 40, 136] {
            add((8, 8, d), &ladder, None, true, 1);
            add((8, 8, d), &ladder, Some(201), true, 0);
        }
        // The prefill kernel knows steps of one token too; a window of one key is the query's own.
        add((8, 2, 32), &[(1, 130), (5, 5), (1, 1)], None, false, 2);
        add((4, 2, 20), &[(9, 40), (1, 40)], Some(1), false, 0);
        // More heads on a key than a decode block takes, and many short sequences.
        add((20, 1, 16), &[(1, 70), (1, 9)], None, true, 0);
        add((40, 2, 8), &[(7, 30)], None, true, 0);
        add((2, 1, 32), &[(1, 5); 40], None, true, 0);
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let mut add = |what: &str, heads, seqs: &[(usize, usize)], window| {
            all.push(case(what, Row { dtype, heads, seqs: seqs.to_vec(), window, work: true, idle: 0 }));
        };
        // A head size each: Qwen2-0.5B of InternVL2-1B, OPT-2.7B of BLIP-2, Phi-3-mini of xGen-MM.
        for heads in [(14, 2, 64), (32, 32, 80), (32, 32, 96)] {
            add("decode: ", heads, &[(1, 400); 2], None);
            add("chunk: ", heads, &[(128, 128)], None);
        }
        let (llama, mistral, qwen) = ((32, 8, 128), (32, 8, 128), (28, 4, 128));
        for batch in [1, 4, 16, 64] {
            add("Llama-3.1-8B, decode: ", llama, &vec![(1, 853); batch], None);
            add("Qwen2-VL-7B, decode: ", qwen, &vec![(1, 1100); batch], None);
        }
        add("Mistral-7B, decode in a window: ", mistral, &[(1, 6000)], Some(4096));
        add("Llama-3.1-8B, prefill: ", llama, &[(1024, 1024)], None);
        add("Llama-3.1-8B, chunk: ", llama, &[(256, 1024)], None);
        add("Qwen2-VL-7B, prefill: ", qwen, &[(1024, 1024)], None);
        add("Llama-3.1-8B, mixed: ", llama, &[(1, 853), (1, 700), (1, 900), (253, 253)], None);
    }
    all
}

/// A cache with its keys and values on the host, zero where nothing is held.
struct Pages {
    host: Vec<f32>,
    table: Vec<i32>,
    blocks: usize,
}

/// Gives each sequence the pages that some query of it sees, in an order that is not theirs.
fn pages(numbers: &mut Numbers, row: &Row) -> Pages {
    let (_, kv_heads, dim) = row.heads;
    let counts = row.seqs.iter().map(|s| s.1.div_ceil(PAGE_SIZE));
    let blocks = counts.clone().max().unwrap_or(0) + 1;
    let total = counts.sum::<usize>() + 1;
    // Odd steps through a power of two visit every page.
    let places = total.next_power_of_two();
    let mut next = (0..places).map(|i| (i * 5 + 3) % places).filter(|p| *p < total);
    let page_elements = 2 * kv_heads * PAGE_SIZE * dim;
    let mut host = vec![0.0; total * page_elements];
    let mut table = vec![-1; row.seqs.len() * blocks];
    for (s, &(queries, context)) in row.seqs.iter().enumerate() {
        let first = row.window.map_or(0, |w| (context - queries + 1).saturating_sub(w) / PAGE_SIZE);
        for block in first..context.div_ceil(PAGE_SIZE) {
            let page = next.next().expect("as many pages as blocks");
            table[s * blocks + block] = page as i32;
            let held = (context - block * PAGE_SIZE).min(PAGE_SIZE);
            for part in 0..2 * kv_heads {
                let at = (page * 2 * kv_heads + part) * PAGE_SIZE * dim;
                host[at..at + held * dim].copy_from_slice(&numbers.normals(row.dtype, held * dim, 1.0));
            }
        }
    }
    Pages { host, table, blocks }
}

fn build(gpu: &Gpu, row: &Row) -> Result<Instance> {
    let Row { dtype, window, idle, .. } = *row;
    let (num_heads, num_kv_heads, head_dim) = row.heads;
    let heads = Heads { num_heads, num_kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5) };
    let (seqs, live) = (row.seqs.len(), row.seqs.iter().map(|s| s.0).sum::<usize>());
    let width = num_heads * head_dim;
    let mut numbers = Numbers::new((width * 3 + live * 5 + seqs) as u64);
    let q = numbers.normals(dtype, live * width, 1.0);
    let Pages { host, table, blocks } = pages(&mut numbers, row);
    let contexts: Vec<i32> = row.seqs.iter().map(|s| s.1 as i32).collect();
    let mut cu = vec![0];
    for s in &row.seqs {
        cu.push(cu[cu.len() - 1] + s.0 as i32);
    }

    let cache = gpu.memory(host.len() * dtype.size())?;
    let part = PAGE_SIZE * head_dim;
    for (s, &(_, context)) in row.seqs.iter().enumerate() {
        for block in 0..context.div_ceil(PAGE_SIZE) {
            let page = table[s * blocks + block];
            let held = (context - block * PAGE_SIZE).min(PAGE_SIZE) * head_dim;
            for p in 0..if page < 0 { 0 } else { 2 * num_kv_heads } {
                let at = (page as usize * 2 * num_kv_heads + p) * part;
                let bytes = encode(dtype, &host[at..at + held]);
                cache.slice(at * dtype.size(), bytes.len())?.copy_from_host(&gpu.stream, &bytes)?;
            }
        }
    }
    let (rows, max_seqs) = (live + idle, seqs + idle);
    let dq = gpu.in_place(dtype, &q, rows, width)?;
    let out = gpu.output(dtype, rows, live, width)?;
    let (dtable, dcu) = (gpu.ints_in(&table, max_seqs * blocks)?, gpu.ints_in(&cu, max_seqs + 1)?);
    let dcontexts = gpu.ints_in(&contexts, max_seqs)?;
    let (num_rows, num_seqs, num_blocks) = (gpu.count(live)?, gpu.count(seqs)?, gpu.count(blocks)?);
    let need = work_bytes(&heads, max_seqs, blocks, gpu.cuda.device().multiprocessors() as usize);
    let partial = gpu.memory(need.partial_bytes)?;
    let arrived = gpu.bytes(&vec![0; need.arrived_bytes])?;
    let op = PagedAttention {
        dtype,
        heads,
        window,
        q: dq.slice(),
        q_stride: dq.ld(),
        out: out.slice(),
        out_stride: out.ld(),
        cache: cache.all(),
        block_table: dtable.all(),
        cu_seqlens_q: dcu.all(),
        context_lens: dcontexts.all(),
        rows,
        seqs: max_seqs,
        blocks,
        num_rows: Some(num_rows.all()),
        num_seqs: Some(num_seqs.all()),
        num_blocks: Some(num_blocks.all()),
    };
    let (mut keys, mut pairs) = (0, 0);
    for &(queries, context) in &row.seqs {
        let seen = |position: usize| window.map_or(position + 1, |w| w.min(position + 1));
        pairs += (context - queries..context).map(seen).sum::<usize>();
        keys += context.min(window.map_or(context, |w| w + queries - 1));
    }
    let work = Work {
        bytes: (2 * (live * width + keys * num_kv_heads * head_dim) * dtype.size() + 4 * keys.div_ceil(PAGE_SIZE))
            as u64,
        flops: (4 * pairs * width) as u64,
    };
    let largest = host.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let launches = match row.work {
        true => op.prepare_with(&gpu.cuda, Memory { partial: partial.all(), arrived: arrived.all() })?,
        false => op.prepare(&gpu.cuda)?,
    };
    Ok(Instance::new(launches, work).expect(&out, Limits::attention(dtype, largest.into()), move || {
        let kv =
            PagedKv { cache: KvData::F32(&host), page_size: PAGE_SIZE, block_table: &table, context_lens: &contexts };
        let mut want = vec![0.0; live * width];
        paged_attention(&mut want, &q, &kv, &cu, &heads, window)?;
        Ok(want)
    }))
}

#[test]
fn attention_over_pages() {
    super::harness::check(&OP);
}

/// The decode kernel leaves its counters as it found them: a captured graph launches it again and again.
#[test]
fn a_decode_launch_may_be_repeated() {
    let Some(gpu) = Gpu::open() else { return };
    let row =
        Row { dtype: DType::Bf16, heads: (4, 1, 64), seqs: vec![(1, 300), (1, 90)], window: None, work: true, idle: 0 };
    let mut instance = build(&gpu, &row).expect("a launch");
    let again = instance.launches.clone();
    instance.launches.extend(again);
    instance.check(&gpu).expect("the same result twice");
}
