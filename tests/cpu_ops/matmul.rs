//! Linear layers.

use engine::backend::cpu::activations::activation;
use engine::backend::cpu::elementwise::{add, mul};
use engine::backend::cpu::matmul::{gated_linear, linear, linear_activation, linear_add};
use engine::backend::cpu::{Matrix, WeightData};
use engine::graph::Activation;
use half::{bf16, f16};

use crate::common::{Numbers, bits, same_on_every_isa, with_threads, worst};

/// A matrix in each storage, and its exact values.
struct Weights {
    n: usize,
    k: usize,
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Weights {
    fn new(r: &mut Numbers, n: usize, k: usize) -> Weights {
        let f32 = r.normals(n * k);
        let f16 = f32.iter().map(|v| f16::from_f32(*v)).collect();
        let bf16 = f32.iter().map(|v| bf16::from_f32(*v)).collect();
        Weights { n, k, f32, f16, bf16 }
    }

    fn matrices(&self) -> [Matrix<'_>; 3] {
        let (n, k) = (self.n, self.k);
        [WeightData::F32(&self.f32), WeightData::F16(&self.f16), WeightData::Bf16(&self.bf16)].map(|data| Matrix {
            n,
            k,
            data,
        })
    }
}

fn value(w: &Matrix, i: usize) -> f64 {
    match w.data {
        WeightData::F32(d) => d[i] as f64,
        WeightData::F16(d) => d[i].to_f64(),
        WeightData::Bf16(d) => d[i].to_f64(),
    }
}

/// The definition, and the sum of magnitudes that bounds its rounding.
fn expected(x: &[f32], m: usize, w: &Matrix, bias: Option<&[f32]>) -> Vec<f64> {
    let mut y = Vec::new();
    for r in 0..m {
        for c in 0..w.n {
            let dot: f64 = (0..w.k).map(|i| x[r * w.k + i] as f64 * value(w, c * w.k + i)).sum();
            y.push(dot + bias.map_or(0.0, |b| b[c] as f64));
        }
    }
    y
}

fn run(x: &[f32], m: usize, w: &Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * w.n];
    linear(&mut y, x, m, w, bias).expect("shapes fit");
    y
}

#[test]
fn linear_is_the_sum_of_products_in_every_storage() {
    let mut r = Numbers::new(1);
    for (m, n, k) in [
        (1, 1, 1),
        (1, 7, 5),
        (1, 9, 33),
        (2, 13, 16),
        (3, 5, 17),
        (6, 8, 31),
        (7, 4, 48),
        (16, 21, 129),
        (17, 3, 15),
        (17, 67, 40),
        (23, 130, 100),
        (61, 66, 257),
        (200, 70, 33),
        (40, 9, 2100),
    ] {
        let weights = Weights::new(&mut r, n, k);
        let (x, b) = (r.normals(m * k), r.normals(n));
        for w in weights.matrices() {
            for bias in [None, Some(b.as_slice())] {
                let y = run(&x, m, &w, bias);
                let e = worst(&y, &expected(&x, m, &w, bias), (k as f64).sqrt() + 1.0);
                assert!(e < 1e-6, "[{m},{k}]x[{n},{k}] {:?}: error {e}", std::mem::discriminant(&w.data));
            }
        }
    }
}

#[test]
fn no_rows_no_columns_no_depth() {
    let b = [1.5, -2.0];
    for m in [1, 20] {
        let w = Matrix { n: 2, k: 0, data: WeightData::F32(&[]) };
        assert_eq!(run(&[], m, &w, Some(&b)), b.repeat(m));
        assert_eq!(run(&[], m, &w, None), vec![0.0; 2 * m]);
    }
    assert!(run(&[], 0, &Matrix { n: 2, k: 2, data: WeightData::F32(&[0.0; 4]) }, None).is_empty());
    assert!(run(&[1.0, 2.0], 1, &Matrix { n: 0, k: 2, data: WeightData::F32(&[]) }, None).is_empty());
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let w = Matrix { n: 2, k: 3, data: WeightData::F32(&[0.0; 6]) };
    let mut y = [0.0; 2];
    let said = |r: engine::Result<()>| r.expect_err("must not fit").to_string();
    assert!(said(linear(&mut y, &[0.0; 4], 1, &w, None)).contains("linear: x: expected 3 elements, got 4"));
    assert!(said(linear(&mut y[..1], &[0.0; 3], 1, &w, None)).contains("y: expected 2"));
    assert!(said(linear(&mut y, &[0.0; 3], 1, &w, Some(&[0.0]))).contains("bias: expected 2"));
    let short = Matrix { n: 2, k: 3, data: WeightData::F32(&[0.0; 5]) };
    assert!(said(linear(&mut y, &[0.0; 3], 1, &short, None)).contains("matrix: expected 6"));
    let huge = Matrix { n: usize::MAX, k: 3, data: WeightData::F32(&[]) };
    assert!(said(linear(&mut y, &[0.0; 3], 1, &huge, None)).contains("overflow"));
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut r = Numbers::new(2);
    for (m, n, k) in [(1, 19, 50), (2, 8, 64), (5, 9, 33), (13, 6, 20), (19, 70, 1100), (30, 5, 17)] {
        let weights = Weights::new(&mut r, n, k);
        let x = r.normals(m * k);
        for w in weights.matrices() {
            same_on_every_isa(|| run(&x, m, &w, None));
        }
    }
}

#[test]
fn subnormals_infinities_and_nan_are_the_same_on_every_instruction_set() {
    let k = 40;
    let special = [0.0f32, -0.0, 1e-40, -1e-42, f32::MIN_POSITIVE, 6e4, -1e-7, 1.0, f32::INFINITY, f32::NAN];
    let weights: Vec<f32> = (0..20 * k).map(|i| special[(i * 7 + i / k) % 8]).collect();
    let f16s: Vec<f16> = (0..20 * k).map(|i| f16::from_bits((i * 37 % 0x7c00) as u16)).collect();
    let bf16s: Vec<bf16> = (0..20 * k).map(|i| bf16::from_bits((i * 41 % 0x7f80) as u16)).collect();
    for m in [1, 4, 18] {
        let x: Vec<f32> = (0..m * k).map(|i| special[(i * 3 + i / k) % if i / k == 3 { 10 } else { 8 }]).collect();
        for data in [WeightData::F32(&weights), WeightData::F16(&f16s), WeightData::Bf16(&bf16s)] {
            same_on_every_isa(|| run(&x, m, &Matrix { n: 20, k, data }, None));
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_the_threads() {
    let mut r = Numbers::new(3);
    for (n, k) in [(37, 70), (64, 64), (9, 1500), (130, 2100)] {
        let weights = Weights::new(&mut r, n, k);
        let most = 70;
        let x = r.normals(most * k);
        for w in weights.matrices() {
            let alone: Vec<u32> = (0..most).flat_map(|i| bits(&run(&x[i * k..(i + 1) * k], 1, &w, None))).collect();
            for m in [2, 3, 6, 7, 12, 16, 17, 18, 37, 70] {
                for threads in [1, 2] {
                    let from = most - m;
                    let y = with_threads(threads, || run(&x[from * k..], m, &w, None));
                    assert!(bits(&y) == alone[from * n..], "m={m}, n={n}, k={k}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn more_rows_than_are_packed_at_once() {
    let mut r = Numbers::new(4);
    // 16 MiB of packed x are 199 rows of 21000.
    let (m, n, k) = (420, 3, 21_000);
    let weights = Weights::new(&mut r, n, k);
    let x = r.normals(m * k);
    let w = &weights.matrices()[2];
    let y = run(&x, m, w, None);
    for i in [0, 191, 192, 198, 199, 215, 216, 300, 419] {
        assert_eq!(bits(&y[i * n..(i + 1) * n]), bits(&run(&x[i * k..(i + 1) * k], 1, w, None)), "row {i}");
    }
}

#[test]
fn fused_forms_equal_their_parts_bit_for_bit() {
    let mut r = Numbers::new(5);
    let (n, k) = (70, 45);
    let (gate, up) = (Weights::new(&mut r, n, k), Weights::new(&mut r, n, k));
    let kinds = [Activation::Silu, Activation::GeluErf, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];
    for m in [1, 3, 16, 17, 40] {
        let (x, b, old) = (r.normals(m * k), r.normals(n), r.normals(m * n));
        for (i, g) in gate.matrices().iter().enumerate() {
            let mut y = old.clone();
            linear_add(&mut y, &x, m, g, Some(&b)).expect("fits");
            let mut parts = old.clone();
            add(&mut parts, &run(&x, m, g, Some(&b))).expect("fits");
            assert_eq!(bits(&y), bits(&parts));
            for kind in kinds {
                let mut act = run(&x, m, g, Some(&b));
                activation(&mut act, kind);
                linear_activation(&mut y, &x, m, g, Some(&b), kind).expect("fits");
                assert_eq!(bits(&y), bits(&act), "{kind:?}");
                // The same storage, and a mixed pair.
                for u in [&up.matrices()[i], &up.matrices()[(i + 1) % 3]] {
                    let mut parts = run(&x, m, g, None);
                    activation(&mut parts, kind);
                    mul(&mut parts, &run(&x, m, u, None)).expect("fits");
                    gated_linear(&mut y, &x, m, g, u, kind).expect("fits");
                    assert_eq!(bits(&y), bits(&parts), "{kind:?}, m={m}");
                }
            }
        }
    }
}
