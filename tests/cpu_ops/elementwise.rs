//! Norms, activations, rotary embedding, rows, logits.

use engine::backend::cpu::activations::{activation, silu_mul, tanh_in_place};
use engine::backend::cpu::elementwise::{add, mul};
use engine::backend::cpu::gather::{
    broadcast_rows, concat_segments, embed_merge, embedding, gather_rows, scatter_rows,
};
use engine::backend::cpu::logits::{argmax, log_softmax, log_sum_exp};
use engine::backend::cpu::norms::{layer_norm, rms_norm};
use engine::backend::cpu::rope::{Angles, rope};
use engine::backend::cpu::{Matrix, WeightData};
use engine::graph::Activation;
use half::{bf16, f16};

use crate::common::{Numbers, bits, same_on_every_isa, with_threads, worst};

const SIZES: [(usize, usize); 8] = [(1, 1), (3, 5), (2, 16), (4, 17), (5, 31), (1, 144), (7, 1152), (40, 1001)];

#[test]
fn norms_against_their_definitions() {
    let mut r = Numbers::new(21);
    for (rows, dim) in SIZES {
        // Off-centre, so that one-pass variance would show.
        let x: Vec<f32> = r.normals(rows * dim).iter().map(|v| v * 3.0 + 5.0).collect();
        let (w, b) = (r.normals(dim), r.normals(dim));
        let (mut layer, mut rms) = (vec![], vec![]);
        for row in x.chunks(dim) {
            let n = dim as f64;
            let mean = row.iter().map(|v| *v as f64).sum::<f64>() / n;
            let var = row.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / n;
            let square = row.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / n;
            for (i, v) in row.iter().enumerate() {
                layer.push((*v as f64 - mean) / (var + 1e-5).sqrt() * w[i] as f64 + b[i] as f64);
                rms.push(*v as f64 / (square + 1e-6).sqrt() * w[i] as f64);
            }
        }
        let y = same_on_every_isa(|| {
            let mut y = vec![f32::NAN; x.len()];
            layer_norm(&mut y, &x, rows, dim, &w, &b, 1e-5).expect("fits");
            y
        });
        assert!(worst(&y, &layer, 1.0) < 5e-6, "layer_norm [{rows}, {dim}]: {}", worst(&y, &layer, 1.0));
        let y = same_on_every_isa(|| {
            let mut y = vec![f32::NAN; x.len()];
            rms_norm(&mut y, &x, rows, dim, &w, 1e-6).expect("fits");
            y
        });
        assert!(worst(&y, &rms, 1.0) < 2e-6, "rms_norm [{rows}, {dim}]: {}", worst(&y, &rms, 1.0));
        // A row alone, and other thread counts.
        let last = (rows - 1) * dim;
        let mut alone = vec![0.0; dim];
        rms_norm(&mut alone, &x[last..], 1, dim, &w, 1e-6).expect("fits");
        assert_eq!(bits(&alone), bits(&y[last..]));
        for threads in [1, 2] {
            let mut z = vec![0.0; x.len()];
            with_threads(threads, || rms_norm(&mut z, &x, rows, dim, &w, 1e-6)).expect("fits");
            assert_eq!(bits(&z), bits(&y));
        }
    }
}

/// Values all over the line, specials included.
fn sweep() -> Vec<f32> {
    let mut x =
        vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, 1e-20, 88.7, -88.7, 104.0, -104.0, 1e30];
    x.extend((0..400_001).map(|i| (i as f32 - 200_000.0) / 8000.0));
    x
}

/// Distance in units of the last place of the f32 nearest to `b`; near zero those of `floor`.
fn ulps(a: f32, b: f64, floor: f64) -> f64 {
    if a as f64 == b || (a.is_infinite() && b.abs() > f32::MAX as f64) {
        return 0.0;
    }
    let scale = b.abs().max(floor);
    (a as f64 - b).abs() / 2f64.powi(scale.log2().floor() as i32 - 23)
}

/// erf by its Taylor series, and beyond 3 by the continued fraction of erfc, both in f64.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= -a * a / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return (sum * 2.0 / std::f64::consts::PI.sqrt()).copysign(x);
    }
    let mut f = 0.0;
    for n in (1..200).rev() {
        f = n as f64 / 2.0 / (a + f);
    }
    (1.0 - (-a * a).exp() / ((a + f) * std::f64::consts::PI.sqrt())).copysign(x)
}

#[test]
fn tanh_is_accurate() {
    let x = sweep();
    let y = same_on_every_isa(|| {
        let mut y = x.clone();
        tanh_in_place(&mut y);
        y
    });
    let worst = x.iter().zip(&y).map(|(x, y)| ulps(*y, (*x as f64).tanh(), 1e-37)).fold(0.0, f64::max);
    assert!(worst <= 2.0, "{worst} ulp");
}

#[test]
fn activations_are_accurate() {
    let x = sweep();
    let gelu_tanh = |x: f64| {
        let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        // tanh by its exponential form, so that 1 + tanh keeps its digits.
        x * (1.0 - 1.0 / ((2.0 * t).exp() + 1.0))
    };
    type Definition<'a> = &'a dyn Fn(f64) -> f64;
    // Where a formula itself cancels (1 + tanh, 1 + erf at negative x) f32 keeps absolute accuracy only: that of 0.5 x ulp(1).
    let cases: [(Activation, Definition, f64); 5] = [
        (Activation::Silu, &|x| x / (1.0 + (-x).exp()), 3.0),
        (Activation::QuickGelu, &|x| x / (1.0 + (-1.702 * x).exp()), 3.0),
        (Activation::GeluErf, &|x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt())), 3.0),
        (Activation::GeluTanh, &gelu_tanh, 3.0),
        (Activation::Relu, &|x| x.max(0.0), 0.0),
    ];
    for (kind, f, limit) in cases {
        let y = same_on_every_isa(|| {
            let mut y = x.clone();
            activation(&mut y, kind);
            y
        });
        for (x, y) in x.iter().zip(&y).filter(|(x, _)| x.is_finite()) {
            let want = f(*x as f64);
            let u = ulps(*y, want, (x.abs() as f64 / 2.0).clamp(1e-37, 1e30));
            assert!(u <= limit, "{kind:?}({x}) = {y}, want {want}: {u} ulp");
        }
        assert_eq!(y[2], f32::INFINITY, "{kind:?}(inf)");
        // One element alone has the bits it has among others.
        for i in [0, 5, 1000, x.len() - 1] {
            let mut alone = [x[i]];
            activation(&mut alone, kind);
            assert_eq!(alone[0].to_bits(), y[i].to_bits());
        }
        let mut nan = [f32::NAN, 1.0];
        activation(&mut nan, kind);
        assert!(nan[0].is_nan() && nan[1].is_finite());
    }
}

#[test]
fn products_and_sums() {
    let mut r = Numbers::new(22);
    for n in [0, 1, 15, 40_000] {
        let (a, b) = (r.normals(n), r.normals(n));
        let (mut s, mut p, mut g, mut parts) = (a.clone(), a.clone(), vec![0.0; n], a.clone());
        add(&mut s, &b).expect("fits");
        mul(&mut p, &b).expect("fits");
        silu_mul(&mut g, &a, &b).expect("fits");
        activation(&mut parts, Activation::Silu);
        for i in 0..n {
            assert_eq!((s[i], p[i], g[i]), (a[i] + b[i], a[i] * b[i], parts[i] * b[i]));
        }
    }
    assert!(add(&mut [0.0], &[]).expect_err("lengths").to_string().contains("add: x: expected 1 elements, got 0"));
}

#[test]
fn rope_rotates_pairs() {
    let mut r = Numbers::new(23);
    for (heads, dim, half) in [(1, 2, 1), (3, 12, 6), (2, 80, 40), (4, 128, 64), (2, 10, 3)] {
        let inv: Vec<f32> = (0..half).map(|i| 1.0 / 10_000f32.powf(i as f32 / half as f32)).collect();
        let positions = [0, 1, 7, 4095, 100_000, 7];
        let x = r.normals(positions.len() * heads * dim);
        let mut y = x.clone();
        let angles = Angles { positions: &positions, components: 1, inv_freq: &inv, component: &[], scaling: 1.5 };
        rope(&mut y, &angles, heads, dim).expect("fits");
        let mut want = vec![];
        for (t, p) in positions.iter().enumerate() {
            for h in 0..heads {
                let row = &x[(t * heads + h) * dim..][..dim];
                for i in 0..dim {
                    // The angle is an f32 product, as in the reference implementation.
                    let at = |i: usize| ((*p as f32 * inv[i]) as f64, 1.5);
                    want.push(if i < half {
                        let (a, s) = at(i);
                        (row[i] as f64 * a.cos() - row[i + half] as f64 * a.sin()) * s
                    } else if i < 2 * half {
                        let (a, s) = at(i - half);
                        (row[i] as f64 * a.cos() + row[i - half] as f64 * a.sin()) * s
                    } else {
                        row[i] as f64
                    });
                }
            }
        }
        assert!(worst(&y, &want, 1.0) < 1e-6, "heads {heads}, dim {dim}");
        assert_eq!(bits(&y[heads * dim * 2..heads * dim * 3]).len(), heads * dim);
    }
    // One token of one head of four elements: two frequencies, a position or several components of one.
    let refused = |positions: &[i32], components, pairs, component: &[i32]| {
        let angles = Angles { positions, components, inv_freq: &[1.0; 3][..pairs], component, scaling: 1.0 };
        rope(&mut [0.0; 4], &angles, 1, 4).is_err()
    };
    assert!(!refused(&[0], 1, 2, &[]) && !refused(&[0, 1, 2], 3, 2, &[0, 2]));
    assert!(refused(&[0], 1, 3, &[]) && refused(&[0, 1], 1, 2, &[]) && refused(&[0, 1, 2], 2, 2, &[0, 1]));
    assert!(refused(&[0, 1], 2, 2, &[]) && refused(&[0, 1], 2, 2, &[0]));
    assert!(refused(&[0, 1], 2, 2, &[0, 2]) && refused(&[0, 1], 2, 2, &[0, -1]));
}

#[test]
fn rows_are_looked_up() {
    let f: Vec<f32> = (0..12).map(|i| i as f32 / 4.0).collect();
    let h: Vec<f16> = f.iter().map(|v| f16::from_f32(*v)).collect();
    let b: Vec<bf16> = f.iter().map(|v| bf16::from_f32(*v)).collect();
    let slab = [100.0, 101.0, 102.0, 200.0, 201.0, 202.0];
    for data in [WeightData::F32(&f), WeightData::F16(&h), WeightData::Bf16(&b)] {
        let table = Matrix { n: 4, k: 3, data };
        let mut y = [0.0; 9];
        embedding(&mut y, &table, &[3, 0, 3]).expect("fits");
        assert_eq!(y, [2.25, 2.5, 2.75, 0.0, 0.25, 0.5, 2.25, 2.5, 2.75]);
        embed_merge(&mut y, &table, &[1, -9, 2], &[-1, 1, -1], &slab).expect("an image token's id is not looked at");
        assert_eq!(y, [0.75, 1.0, 1.25, 200.0, 201.0, 202.0, 1.5, 1.75, 2.0]);
        let said = |r: engine::Result<()>| r.expect_err("must be refused").to_string();
        assert!(said(embedding(&mut y, &table, &[0, 4, 0])).contains("token id 4 is outside 0..4"));
        assert!(said(embedding(&mut y, &table, &[0, -1, 0])).contains("token id -1"));
        assert!(said(embed_merge(&mut y, &table, &[0, 0, 4], &[0, 0, -1], &slab)).contains("token id 4"));
        assert!(said(embed_merge(&mut y, &table, &[0; 3], &[0, 0, 2], &slab)).contains("slab row 2 is outside 0..2"));
        let two = Matrix { n: 2, k: 2, data };
        assert!(said(embedding(&mut y, &two, &[0])).contains("expected 4 elements, got 12"));
        let mut copies = [0.0; 24];
        broadcast_rows(&mut copies, &table).expect("fits");
        assert_eq!(copies[..12], f[..]);
        assert_eq!(copies[12..], f[..]);
        assert!(said(broadcast_rows(&mut y, &table)).contains("not copies of [4, 3]"));
    }
}

#[test]
fn rows_are_moved() {
    let x: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let mut y = [0.0; 6];
    gather_rows(&mut y, &x, &[3, 3, 0], 2).expect("fits");
    assert_eq!(y, [6.0, 7.0, 6.0, 7.0, 0.0, 1.0]);
    assert!(gather_rows(&mut y, &x, &[4, 0, 0], 2).is_err());
    let mut slab = [0.0; 6];
    scatter_rows(&mut slab, &x, &[2, -1, 0, 2], 2).expect("fits");
    assert_eq!(slab, [4.0, 5.0, 0.0, 0.0, 6.0, 7.0]);
    assert!(scatter_rows(&mut slab, &x, &[3, 0, 0, 0], 2).is_err());
    let mut y = [0.0; 10];
    concat_segments(&mut y, &x, &[0, 2, 2, 3], &[-1.0, -2.0, -3.0, -4.0], &[0, 0, 1, 2], 2).expect("fits");
    assert_eq!(y, [0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 4.0, 5.0, -3.0, -4.0]);
    assert!(concat_segments(&mut y, &x, &[0, 5], &[], &[0, 0], 2).is_err());
    assert!(concat_segments(&mut y, &x, &[0, 2], &[], &[0], 2).is_err());
}

#[test]
fn logits() {
    assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
    assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY, -5.0]), 2);
    assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
    assert_eq!(argmax(&[]), 0);
    let mut r = Numbers::new(24);
    for vocab in [1, 15, 1024, 1025, 50_000] {
        let x: Vec<f32> = r.normals(3 * vocab).iter().map(|v| v * 8.0 + 60.0).collect();
        let y = same_on_every_isa(|| {
            let mut y = vec![0.0; x.len()];
            log_softmax(&mut y, &x, vocab).expect("fits");
            y
        });
        let want: Vec<f64> = x
            .chunks(vocab)
            .flat_map(|row| {
                let z = row.iter().map(|v| (*v as f64).exp()).sum::<f64>().ln();
                row.iter().map(move |v| *v as f64 - z)
            })
            .collect();
        assert!(worst(&y, &want, 1.0) < 2e-5, "{vocab}: {}", worst(&y, &want, 1.0));
    }
    assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY]), 2.0);
    assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
}
