//! What a kernel's result may differ from the CPU operation's by: the numeric contract of the CUDA backend.
//!
//! In: both results as f32. Out: nothing, or what is wrong with the first bad element and the whole.

use engine::tensor::DType;

/// How far a result may be from its reference. Both bounds hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of `|got - want| / |want|` over the whole result, as Frobenius norms.
    pub frobenius: f64,
    /// Of one element: `relative * |want| + of_rms * rms(want) + absolute`.
    pub relative: f64,
    pub of_rms: f64,
    pub absolute: f64,
}

/// Half a unit in the last place of a type, relative.
fn half_ulp(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

impl Limits {
    /// The same bits.
    pub const EXACT: Limits = Limits { frobenius: 0.0, relative: 0.0, of_rms: 0.0, absolute: 0.0 };

    /// Products of matrices, f32 accumulation, one rounding to `dtype` at the end.
    pub fn gemm(dtype: DType) -> Limits {
        let frobenius = if dtype == DType::Bf16 { 2e-3 } else { 5e-4 };
        Limits { frobenius, relative: half_ulp(dtype), of_rms: 4e-3, absolute: 1e-7 }
    }

    /// Attention: probabilities are rounded to `dtype` before they meet the values. `largest` is that of |v|.
    pub fn attention(dtype: DType, largest: f64) -> Limits {
        let (frobenius, of_largest) = if dtype == DType::Bf16 { (4e-3, 1e-2) } else { (1e-3, 2e-3) };
        Limits { frobenius, relative: 0.0, of_rms: 0.0, absolute: of_largest * largest }
    }

    /// Arithmetic in f32 of a few units in the last place, then one rounding to `dtype`. f16 loses its relative
    /// accuracy below 6e-5, where its numbers lie 6e-8 apart.
    pub fn rounding(dtype: DType) -> Limits {
        let bound = half_ulp(dtype) + 4e-6;
        let absolute = if dtype == DType::F16 { 4e-8 } else { 1e-30 };
        Limits { frobenius: bound, relative: bound, of_rms: 1e-6, absolute }
    }

    /// As [`Limits::rounding`], with room for approximate exponentials and divisions.
    pub fn function(dtype: DType) -> Limits {
        let base = Limits::rounding(dtype);
        Limits { frobenius: 2e-3, relative: half_ulp(dtype) + 2e-5, of_rms: 2e-6, ..base }
    }
}

/// Compares `got` with `want`, both `[rows, cols]`. The error names the worst element, and how many are bad.
pub fn compare(got: &[f32], want: &[f32], cols: usize, limits: Limits) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} elements where {} are wanted", got.len(), want.len()));
    }
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>();
    let norm = squares(&mut want.iter().map(|v| f64::from(*v)).filter(|v| v.is_finite())).sqrt();
    let rms = norm / (want.len().max(1) as f64).sqrt();
    let (mut worst, mut bad, mut distance) = (None, 0usize, 0.0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        if g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan()) || (g == w && limits.relative > 0.0) {
            continue;
        }
        let off = (f64::from(g) - f64::from(w)).abs();
        let bound = limits.relative * f64::from(w).abs() + limits.of_rms * rms + limits.absolute;
        // A distance that is not a number fails too.
        if off.is_nan() || off > bound {
            bad += 1;
            let excess = if off.is_nan() { f64::INFINITY } else { off / bound };
            if worst.is_none_or(|(_, most)| excess > most) {
                worst = Some((i, excess));
            }
        }
        distance += off * off;
    }
    if let Some((i, _)) = worst {
        let (row, col) = (i / cols.max(1), i % cols.max(1));
        return Err(format!(
            "{bad} of {} elements are off, the worst at row {row}, column {col}: {} for {}",
            got.len(),
            got[i],
            want[i]
        ));
    }
    // The limit is that of a large result. In a small one a few unlucky roundings weigh more.
    let most = limits.frobenius * (1.0 + 2.0 / (want.len().max(1) as f64).sqrt());
    let frobenius = distance.sqrt() / norm.max(1e-30);
    if frobenius > most {
        return Err(format!("relative Frobenius distance {frobenius:.2e}, at most {most:.2e}"));
    }
    Ok(())
}

#[test]
fn wrong_results_are_found() {
    let want: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) / 8.0).collect();
    let with = |i: usize, v: f32| {
        let mut got = want.clone();
        got[i] = v;
        got
    };
    for limits in [Limits::gemm(DType::Bf16), Limits::rounding(DType::F16), Limits::attention(DType::Bf16, 4.0)] {
        assert!(compare(&want, &want, 8, limits).is_ok());
        for bad in [f32::NAN, f32::INFINITY, want[17] + 0.1, 0.0] {
            let text = compare(&with(17, bad), &want, 8, limits).unwrap_err();
            assert!(text.contains("row 2, column 1"), "{text}");
        }
        assert!(compare(&want[1..], &want, 8, limits).is_err());
    }
    assert!(compare(&with(3, want[3] + 1e-6), &want, 8, Limits::EXACT).is_err());
    // Every element a little off is worse than one.
    let drift: Vec<f32> = want.iter().map(|v| v * 1.0035).collect();
    assert!(compare(&drift, &want, 8, Limits::gemm(DType::Bf16)).unwrap_err().contains("Frobenius"));
}
