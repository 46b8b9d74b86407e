//! Patch embedding against the convolution's definition.

use engine::backend::cpu::patch_embed::{patch_embed, patches};
use engine::backend::cpu::{Matrix, WeightData};
use engine::graph::Normalization;

use crate::common::{Numbers, worst};

#[test]
fn patch_embedding_is_a_convolution_of_normalised_pixels() {
    let mut r = Numbers::new(31);
    let normalize = Some(([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]));
    for (side, n, normalization) in [
        (14, 5, Normalization { rescale: Some(1.0 / 255.0), normalize }),
        (3, 7, Normalization { rescale: None, normalize }),
        (1, 1, Normalization { rescale: Some(1.0 / 127.5), normalize: None }),
    ] {
        // Two images, the second one with a margin on the right that no patch takes.
        let images = [(2, 3, 3 * side), (1, 2, 2 * side + 5)];
        let (mut pixels, mut origins, mut at) = (Vec::new(), Vec::new(), Vec::new());
        for (rows, cols, width) in images {
            for (row, col) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
                origins.extend([pixels.len() + (row * side * width + col * side) * 3, width * 3].map(|v| v as i32));
                at.push((pixels.len(), width, row * side, col * side));
            }
            pixels.extend((0..rows * side * width * 3).map(|_| r.below(256) as u8));
        }
        let (w, bias) = (r.normals(n * 3 * side * side), r.normals(n));
        let value = |c: usize, p: u8| {
            let x = f64::from(p) * normalization.rescale.unwrap_or(1.0);
            normalization.normalize.map_or(x, |(mean, std)| (x - mean[c]) / std[c])
        };
        let (mut want, mut scale) = (Vec::new(), 0.0f64);
        for (base, width, top, left) in at {
            for (w, b) in w.chunks(3 * side * side).zip(&bias) {
                let (mut sum, mut size) = (f64::from(*b), 1.0);
                for (i, w) in w.iter().enumerate() {
                    let (c, y, x) = (i / (side * side), i / side % side, i % side);
                    let pixel = pixels[base + ((top + y) * width + left + x) * 3 + c];
                    sum += f64::from(*w) * value(c, pixel);
                    size += (f64::from(*w) * value(c, pixel)).powi(2);
                }
                want.push(sum);
                scale = scale.max(size.sqrt());
            }
        }
        let w = Matrix { n, k: 3 * side * side, data: WeightData::F32(&w) };
        let mut y = vec![f32::NAN; want.len()];
        patch_embed(&mut y, (&pixels, &origins), side, &normalization, &w, Some(&bias)).expect("fits");
        assert!(worst(&y, &want, scale) < 2e-6, "side {side}: {}", worst(&y, &want, scale));
    }
}

#[test]
fn patches_outside_of_the_pixels_are_refused() {
    let normalization = Normalization { rescale: None, normalize: None };
    let mut out = [0.0; 12];
    let mut cut = |origins: &[i32]| patches(&mut out, &[7; 21], origins, 2, &normalization);
    assert!(cut(&[3, 12]).is_ok());
    for origins in [[4, 12], [3, 13], [-1, 12], [3, -3], [i32::MAX, i32::MAX]] {
        let error = cut(&origins).expect_err("outside").to_string();
        assert!(error.contains("patch_embed: the end of a patch"), "{error}");
    }
    assert!(cut(&[0, 6, 6, 6]).is_err() && cut(&[0]).is_err());
}
