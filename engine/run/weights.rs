//! Exponentials of a row of logits.
//!
//! In: logits, none greater than a given maximum. Out: `exp(logit - max)` and sums of it. The same bits on every
//! machine: plain f32 arithmetic in a fixed order, written so that the compiler can use vector instructions.
//! Not here: what the weights are for (`sampler.rs`).

/// Weights below `exp(-87)` of the greatest are 0.
const LEAST: f32 = -87.0;
const LANES: usize = 8;

/// `exp(x)` for `x <= 0`, with a relative error below 3e-7.
#[inline]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer and leaves n in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > LEAST { x } else { LEAST };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let series =
        1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x > LEAST { series * scale } else { 0.0 }
}

/// `exp(logit - max)` of every logit, into `weights`.
pub fn weights_of(logits: &[f32], max: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(logits.iter().map(|&logit| exp(logit - max)));
}

/// The sum of weights.
pub fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let chunks = weights.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().copied().map(f64::from).sum();
    for chunk in chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(weight);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// The sum of `exp(logit - max)`.
pub fn sum_of_exp(logits: &[f32], max: f32) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|&logit| f64::from(exp(logit - max))).sum();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp(logit - max));
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_accurate() {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x = -(i as f32) * 86.9 / 200_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-1000.0)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn sums_agree() {
        let logits: Vec<f32> = (0..1003).map(|i| -((i * 37 % 101) as f32) / 7.0).collect();
        let exact: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let mut weights = Vec::new();
        weights_of(&logits, 0.0, &mut weights);
        assert!((sum(&weights) / exact - 1.0).abs() < 1e-6);
        assert!((sum_of_exp(&logits, 0.0) / exact - 1.0).abs() < 1e-6);
        assert_eq!(sum(&[]), 0.0);
    }
}
