//! Attention over segments and over KV pages.

use engine::backend::cpu::attention::{PagedKv, attention, paged_attention};
use engine::backend::cpu::kv_cache::{KvData, KvDataMut, KvShape, kv_write};
use engine::graph::Heads;
use half::bf16;

use crate::common::{Numbers, bits, same_on_every_isa, with_threads, worst};

fn heads(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Heads {
    Heads { num_heads, num_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
}

/// The definition for one query against the keys that `sees` allows; k, v `[keys, kv_heads, dim]`.
fn one(q: &[f32], k: &[f32], v: &[f32], keys: std::ops::Range<usize>, h: &Heads, head: usize) -> Vec<f64> {
    let (dim, kv) = (h.head_dim, head / (h.num_heads / h.num_kv_heads));
    let row = |x: &[f32], j: usize, d: usize| x[(j * h.num_kv_heads + kv) * dim + d] as f64;
    let s: Vec<f64> =
        keys.clone().map(|j| (0..dim).map(|d| q[d] as f64 * row(k, j, d)).sum::<f64>() * h.scale as f64).collect();
    let max = s.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = s.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = p.iter().sum();
    (0..dim)
        .map(|d| if sum == 0.0 { 0.0 } else { keys.clone().zip(&p).map(|(j, p)| p * row(v, j, d)).sum::<f64>() / sum })
        .collect()
}

fn cumulative(lengths: &[usize]) -> Vec<i32> {
    let mut cu = vec![0];
    for l in lengths {
        cu.push(cu[cu.len() - 1] + *l as i32);
    }
    cu
}

#[test]
fn segments_against_the_definition() {
    let mut r = Numbers::new(11);
    let shapes = [(1, 1, 12), (2, 1, 72), (4, 2, 80), (3, 3, 88), (2, 2, 96), (4, 1, 128), (1, 1, 1), (2, 2, 17)];
    let lengths: [(&[usize], &[usize]); 5] = [
        (&[1], &[1]),
        (&[5, 0, 3], &[7, 4, 0]),
        (&[70, 1, 64], &[70, 65, 64]),
        (&[130], &[129]),
        (&[3, 300], &[200, 1]),
    ];
    for (nh, nkv, dim) in shapes {
        let h = heads(nh, nkv, dim);
        for (lq, lk) in lengths {
            let (cu_q, cu_k) = (cumulative(lq), cumulative(lk));
            let (tokens, keys) = (cu_q[lq.len()] as usize, cu_k[lk.len()] as usize);
            let q = r.normals(tokens * nh * dim);
            let (k, v) = (r.normals(keys * nkv * dim), r.normals(keys * nkv * dim));
            let mut out = vec![f32::NAN; q.len()];
            attention(&mut out, &q, &k, &v, &cu_q, &cu_k, &h).expect("shapes fit");
            let mut want = Vec::new();
            for s in 0..lq.len() {
                for t in cu_q[s] as usize..cu_q[s + 1] as usize {
                    for head in 0..nh {
                        let q = &q[(t * nh + head) * dim..][..dim];
                        want.extend(one(q, &k, &v, cu_k[s] as usize..cu_k[s + 1] as usize, &h, head));
                    }
                }
            }
            let e = worst(&out, &want, 1.0);
            assert!(e < 2e-6, "heads {nh}/{nkv} of {dim}, {lq:?} x {lk:?}: error {e}");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let h = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 2, scale: 1.0 };
    let k: Vec<f32> = (0..200).flat_map(|i| [i as f32 * 10.0, -3.0]).collect();
    let v: Vec<f32> = (0..200).flat_map(|i| [i as f32, 1.0]).collect();
    let q = [50.0, 1.0, -50.0, 1.0];
    let mut out = [0.0; 4];
    attention(&mut out, &q, &k, &v, &[0, 2], &[0, 200], &h).expect("fits");
    assert_eq!(out, [199.0, 1.0, 0.0, 1.0]);
}

#[test]
fn tokens_outside_segments_and_empty_segments_give_zeros() {
    let h = heads(1, 1, 4);
    let x = [1.0; 16];
    let mut out = [f32::NAN; 16];
    attention(&mut out, &x, &x, &x, &[0, 2, 3], &[0, 0, 4], &h).expect("fits");
    assert_eq!(out[..8], [0.0; 8]);
    assert_eq!(out[8..12], [1.0; 4]);
    assert_eq!(out[12..], [0.0; 4]);
}

#[test]
fn segments_do_not_depend_on_isa_threads_or_neighbours() {
    let mut r = Numbers::new(12);
    for (nh, nkv, dim) in [(4, 2, 72), (2, 2, 17), (3, 1, 96)] {
        let h = heads(nh, nkv, dim);
        let (lq, lk) = ([300usize, 7, 65], [300usize, 64, 130]);
        let (cu_q, cu_k) = (cumulative(&lq), cumulative(&lk));
        let q = r.normals(cu_q[3] as usize * nh * dim);
        let (k, v) = (r.normals(cu_k[3] as usize * nkv * dim), r.normals(cu_k[3] as usize * nkv * dim));
        let run = |q: &[f32], k: &[f32], v: &[f32], cu_q: &[i32], cu_k: &[i32]| {
            let mut out = vec![f32::NAN; q.len()];
            attention(&mut out, q, k, v, cu_q, cu_k, &h).expect("fits");
            out
        };
        let all = same_on_every_isa(|| run(&q, &k, &v, &cu_q, &cu_k));
        for threads in [1, 2] {
            assert_eq!(bits(&with_threads(threads, || run(&q, &k, &v, &cu_q, &cu_k))), bits(&all));
        }
        let (w, wk) = (nh * dim, nkv * dim);
        for s in 0..3 {
            // Every query of the segment alone.
            let ks = cu_k[s] as usize * wk..cu_k[s + 1] as usize * wk;
            for t in [cu_q[s] as usize, cu_q[s] as usize + lq[s] / 2, cu_q[s + 1] as usize - 1] {
                let q = &q[t * w..(t + 1) * w];
                let alone = run(q, &k[ks.clone()], &v[ks.clone()], &[0, 1], &[0, lk[s] as i32]);
                assert_eq!(bits(&alone), bits(&all[t * w..(t + 1) * w]), "segment {s}, query {t}");
            }
        }
    }
}

/// Sequences whose pages lie scattered in one cache; unwritten slots hold NaN.
struct Paged {
    h: Heads,
    shape: KvShape,
    cache: Vec<f32>,
    tables: Vec<Vec<i32>>,
    /// All q, k, v of each sequence.
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl Paged {
    fn new(r: &mut Numbers, h: Heads, page_size: usize, lengths: &[usize]) -> Paged {
        let shape = KvShape { kv_heads: h.num_kv_heads, head_dim: h.head_dim, page_size };
        let blocks: Vec<usize> = lengths.iter().map(|l| l.div_ceil(page_size)).collect();
        let num_pages: usize = blocks.iter().sum::<usize>() + 2;
        let mut pages: Vec<i32> = (0..num_pages as i32).collect();
        for i in (1..num_pages).rev() {
            pages.swap(i, r.below(i + 1));
        }
        let tables = blocks.iter().map(|b| pages.drain(..*b).collect()).collect();
        let rows = |r: &mut Numbers, width: usize| lengths.iter().map(|l| r.normals(l * width)).collect();
        let kv = h.num_kv_heads * h.head_dim;
        Paged {
            h,
            shape,
            cache: vec![f32::NAN; num_pages * shape.page_elements()],
            tables,
            q: rows(r, h.num_heads * h.head_dim),
            k: rows(r, kv),
            v: rows(r, kv),
        }
    }

    /// A step: tokens `range` of each named sequence, written and attended to.
    fn step(&mut self, parts: &[(usize, std::ops::Range<usize>)], window: Option<usize>) -> Vec<f32> {
        let (w, kv) = (self.h.num_heads * self.h.head_dim, self.h.num_kv_heads * self.h.head_dim);
        let size = self.shape.page_size;
        let (mut q, mut k, mut v, mut slots, mut cu, mut lens) = (vec![], vec![], vec![], vec![], vec![0], vec![]);
        for (s, range) in parts {
            q.extend_from_slice(&self.q[*s][range.start * w..range.end * w]);
            k.extend_from_slice(&self.k[*s][range.start * kv..range.end * kv]);
            v.extend_from_slice(&self.v[*s][range.start * kv..range.end * kv]);
            slots.extend(range.clone().map(|p| self.tables[*s][p / size] * size as i32 + (p % size) as i32));
            cu.push(cu[cu.len() - 1] + range.len() as i32);
            lens.push(range.end as i32);
        }
        kv_write(KvDataMut::F32(&mut self.cache), &k, &v, &slots, self.shape).expect("slots fit");
        let max_blocks = parts.iter().map(|(s, _)| self.tables[*s].len()).max().unwrap_or(0);
        let mut table = Vec::new();
        for (s, range) in parts {
            let used = range.end.div_ceil(size);
            // What is past the context must not be read.
            table.extend((0..max_blocks).map(|b| if b < used { self.tables[*s][b] } else { -7 }));
        }
        let mut out = vec![f32::NAN; q.len()];
        let paged =
            PagedKv { cache: KvData::F32(&self.cache), page_size: size, block_table: &table, context_lens: &lens };
        paged_attention(&mut out, &q, &paged, &cu, &self.h, window).expect("fits");
        out
    }

    fn expected(&self, s: usize, range: std::ops::Range<usize>, window: Option<usize>) -> Vec<f64> {
        let (nh, dim) = (self.h.num_heads, self.h.head_dim);
        let mut want = Vec::new();
        for p in range {
            let first = window.map_or(0, |w| (p + 1).saturating_sub(w));
            for head in 0..nh {
                let q = &self.q[s][(p * nh + head) * dim..][..dim];
                want.extend(one(q, &self.k[s], &self.v[s], first..p + 1, &self.h, head));
            }
        }
        want
    }
}

#[test]
fn pages_against_the_definition() {
    let mut r = Numbers::new(13);
    for (nh, nkv, dim) in [(1, 1, 12), (4, 2, 72), (8, 2, 80), (2, 2, 88), (6, 3, 96), (8, 1, 128)] {
        for page_size in [1, 16, 5, 64] {
            for window in [None, Some(1), Some(70), Some(1000)] {
                let mut c = Paged::new(&mut r, heads(nh, nkv, dim), page_size, &[1, 150, 64, 33]);
                let parts = [(0, 0..1), (1, 0..150), (2, 0..64), (3, 0..33)];
                let out = c.step(&parts, window);
                let want: Vec<f64> =
                    parts.iter().flat_map(|(s, range)| c.expected(*s, range.clone(), window)).collect();
                let e = worst(&out, &want, 1.0);
                assert!(e < 2e-6, "heads {nh}/{nkv} of {dim}, pages of {page_size}, window {window:?}: error {e}");
            }
        }
    }
}

#[test]
fn chunked_prefill_and_decode_equal_the_whole_prompt() {
    let mut r = Numbers::new(14);
    for window in [None, Some(40)] {
        let h = heads(4, 2, 20);
        let mut c = Paged::new(&mut r, h, 16, &[190, 100]);
        let whole = [c.step(&[(0, 0..190)], window), c.step(&[(1, 0..100)], window)].map(|o| bits(&o));
        for chunk in [1usize, 16, 63, 64, 65, 100] {
            for threads in [1, 2] {
                c.cache.fill(f32::NAN);
                let mut got = [vec![], vec![]];
                let mut at = 0;
                while at < 190 {
                    // Both sequences in one step while both have tokens left, in either order.
                    let (a, b) = (at..(at + chunk).min(190), at.min(100)..(at + chunk).min(100));
                    let parts = if b.is_empty() { vec![(0, a)] } else { vec![(1, b), (0, a)] };
                    let out = with_threads(threads, || c.step(&parts, window));
                    let mut from = 0;
                    for (s, range) in &parts {
                        let len = range.len() * h.num_heads * h.head_dim;
                        got[*s].extend(bits(&out[from..from + len]));
                        from += len;
                    }
                    at += chunk;
                }
                assert!(got == whole, "chunks of {chunk}, {threads} threads, window {window:?}");
            }
        }
    }
}

#[test]
fn pages_are_the_same_on_every_isa() {
    let mut r = Numbers::new(15);
    let mut c = Paged::new(&mut r, heads(6, 2, 24), 16, &[100, 17]);
    c.step(&[(0, 0..100), (1, 0..17)], None);
    let c = std::sync::Mutex::new(c);
    same_on_every_isa(|| c.lock().expect("not poisoned").step(&[(0, 60..100), (1, 16..17)], Some(50)));
}

#[test]
fn bf16_pages_hold_rounded_values() {
    let (h, shape) = (heads(2, 1, 8), KvShape { kv_heads: 1, head_dim: 8, page_size: 4 });
    let mut r = Numbers::new(16);
    let (q, k, v) = (r.normals(3 * 16), r.normals(3 * 8), r.normals(3 * 8));
    let round = |x: &[f32]| -> Vec<f32> { x.iter().map(|v| bf16::from_f32(*v).to_f32()).collect() };
    let mut narrow = vec![bf16::ZERO; 2 * shape.page_elements()];
    let mut wide = vec![0.0; 2 * shape.page_elements()];
    kv_write(KvDataMut::Bf16(&mut narrow), &k, &v, &[4, 5, 6], shape).expect("fits");
    kv_write(KvDataMut::F32(&mut wide), &round(&k), &round(&v), &[4, 5, 6], shape).expect("fits");
    let run = |cache: KvData| {
        let mut out = vec![0.0; q.len()];
        let kv = PagedKv { cache, page_size: 4, block_table: &[1], context_lens: &[3] };
        paged_attention(&mut out, &q, &kv, &[0, 3], &h, None).expect("fits");
        bits(&out)
    };
    assert_eq!(run(KvData::Bf16(&narrow)), run(KvData::F32(&wide)));
}

#[test]
fn kv_write_fills_its_slots_and_skips_negative_ones() {
    let shape = KvShape { kv_heads: 2, head_dim: 3, page_size: 2 };
    let mut cache = vec![0.0; 2 * shape.page_elements()];
    let k: Vec<f32> = (1..=12).map(|i| i as f32).collect();
    let v: Vec<f32> = (1..=12).map(|i| -i as f32).collect();
    kv_write(KvDataMut::F32(&mut cache), &k, &v, &[3, -1], shape).expect("fits");
    // Page 1, second token: [K|V][kv_heads][page_size][head_dim].
    let mut want = vec![0.0; 48];
    want[24 + 3..24 + 6].copy_from_slice(&[1.0, 2.0, 3.0]);
    want[24 + 9..24 + 12].copy_from_slice(&[4.0, 5.0, 6.0]);
    want[24 + 15..24 + 18].copy_from_slice(&[-1.0, -2.0, -3.0]);
    want[24 + 21..24 + 24].copy_from_slice(&[-4.0, -5.0, -6.0]);
    assert_eq!(cache, want);
}

#[test]
fn bad_arguments_are_errors() {
    let h = heads(2, 1, 4);
    let shape = KvShape { kv_heads: 1, head_dim: 4, page_size: 2 };
    let said = |r: engine::Result<()>| r.expect_err("must be refused").to_string();
    let mut cache = vec![0.0; 2 * shape.page_elements()];
    let e = said(kv_write(KvDataMut::F32(&mut cache), &[0.0; 4], &[0.0; 4], &[4], shape));
    assert!(e.contains("slot 4 is outside 0..4"), "{e}");
    let mut out = [0.0; 8];
    let mut paged = |table: &[i32], context: i32, cu: &[i32]| {
        let lens = [context];
        let kv = PagedKv { cache: KvData::F32(&cache), page_size: 2, block_table: table, context_lens: &lens };
        said(paged_attention(&mut out, &[0.0; 8], &kv, cu, &h, None))
    };
    assert!(paged(&[2], 1, &[0, 1]).contains("page 2 is outside 0..2"));
    assert!(paged(&[-1], 1, &[0, 1]).contains("page -1 is outside"));
    assert!(paged(&[0], 3, &[0, 1]).contains("context_len 3, 1 pages of 2"));
    assert!(paged(&[0], 0, &[0, 1]).contains("1 queries, context_len 0"));
    assert!(paged(&[0], 1, &[0, 2]).contains("does not ascend within 0..=1"));
    assert!(paged(&[0], 1, &[1, 0]).contains("does not ascend"));
    let mut out = [0.0; 8];
    let uneven = Heads { num_kv_heads: 3, ..h };
    let e = said(attention(&mut out, &[0.0; 8], &[0.0; 4], &[0.0; 4], &[0, 1], &[0, 1], &uneven));
    assert!(e.contains("2 heads of 4 over 3 KV heads"), "{e}");
}
