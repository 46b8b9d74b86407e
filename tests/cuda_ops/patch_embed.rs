//! Patch embedding from pixels. Oracle: engine/backend/cpu/patch_embed.rs, with weights that are rounded where the packed
//! ones are: with their channel's factor, as a part of the first one's, in them.

use engine::Result;
use engine::backend::cpu::matrix::{Matrix, WeightData};
use engine::backend::cpu::patch_embed::patch_embed;
use engine::backend::cuda::ops::patch_embed::PatchEmbed;
use engine::backend::cuda::pack;
use engine::backend::cuda::pack_patches::{PatchFold, pack_patch_panel, patch_biases};
use engine::graph::Normalization;
use engine::tensor::{DType, HostTensor};

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, rounded};

pub const OP: Op = Op { name: "patch_embed", cases, shapes };

#[derive(Clone, Copy)]
struct Row {
    dtype: DType,
    /// Rows and columns of patches of each image.
    images: &'static [(usize, usize)],
    /// Patches of the bucket.
    bucket: usize,
    /// Pixels that each line of an image has beyond its patches.
    margin: usize,
    side: usize,
    n: usize,
    /// Mean and deviation of each channel; of the second kind they differ.
    halves: bool,
}

impl Row {
    fn patches(&self) -> usize {
        self.images.iter().map(|(rows, cols)| rows * cols).sum()
    }

    fn case(self, what: &str) -> Case {
        let Row { dtype, images, bucket, margin, side, n, halves } = self;
        let kind = if halves { "one factor" } else { "three factors" };
        let name = format!(
            "{} {what}{} of {bucket} patches of {side}x{side} in {} images with a margin of {margin} to {n}, {kind}",
            dtype.name(),
            self.patches(),
            images.len()
        );
        Case::new(name, move |gpu| build(gpu, self)).sized(self.work())
    }

    fn work(&self) -> Work {
        let (rows, k) = (self.patches(), 3 * self.side * self.side);
        Work {
            bytes: (rows * k + (self.n * k + rows * self.n) * self.dtype.size()) as u64,
            flops: 2 * (rows * self.n * k) as u64,
        }
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        // Odd sides, bytes at every alignment, one patch, tiles just over, features that end within a vector.
        for (images, bucket, margin, side, n) in [
            ([(4, 5)].as_slice(), 20, 0, 14, 36),
            (&[(3, 5), (7, 9)], 90, 0, 14, 200),
            (&[(2, 3), (1, 1)], 7, 1, 3, 5),
            (&[(1, 1)], 1, 0, 1, 1),
            (&[(9, 9)], 81, 2, 1, 70),
            (&[(5, 13)], 66, 0, 7, 130),
            (&[(2, 2)], 4, 0, 16, 64),
            (&[(1, 2)], 5, 3, 32, 33),
            (&[], 4, 0, 8, 24),
        ] {
            for halves in [true, false] {
                all.push(Row { dtype, images, bucket, margin, side, n, halves }.case(""));
            }
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let dtype = DType::Bf16;
    let row = |images, bucket, side, n| Row { dtype, images, bucket, margin: 0, side, n, halves: true };
    vec![
        row(&[(27, 27)], 729, 14, 1152).case("SigLIP so400m "),
        row(&[(34, 45)], 1530, 14, 1152).case("SigLIP so400m, 640x480 "),
        Row { halves: false, ..row(&[(24, 24)], 576, 14, 1024) }.case("CLIP ViT-L/14 "),
    ]
}

fn build(gpu: &Gpu, row: Row) -> Result<Instance> {
    let Row { dtype, images, bucket, margin, side, n, halves } = row;
    let (live, k) = (row.patches(), 3 * side * side);
    let mut numbers = Numbers::new((live * 31 + n * 7 + side) as u64);
    let (mut pixels, mut origins) = (Vec::new(), Vec::new());
    for &(rows, cols) in images {
        let stride = 3 * (cols * side + margin);
        for (y, x) in (0..rows).flat_map(|y| (0..cols).map(move |x| (y, x))) {
            origins.extend([pixels.len() + y * side * stride + 3 * x * side, stride].map(|v| v as i32));
        }
        pixels.extend((0..rows * side * stride).map(|_| numbers.next_u32() as u8));
    }
    let normalize = if halves { ([0.5; 3], [0.5; 3]) } else { ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]) };
    let normalization = Normalization { rescale: Some(1.0 / 255.0), normalize: Some(normalize) };
    let w = numbers.normals(dtype, n * k, 0.05);
    let tensor = HostTensor::from_f32(vec![n, 3, side, side], &w);
    let bias = numbers.normals(DType::F32, n, 1.0);

    let fold = PatchFold::new(side, &normalization);
    let panel = pack::panel_bytes(fold.columns());
    let mut packed = vec![0; n.div_ceil(pack::PANEL_ROWS) * panel];
    for (i, out) in packed.chunks_exact_mut(panel).enumerate() {
        pack_patch_panel("w", &tensor, &fold, dtype, i, out)?;
    }
    let mut words = pixels.clone();
    words.resize(pixels.len().next_multiple_of(4).max(4), 0);
    let (dpixels, dorigins) = (gpu.bytes(&words)?, gpu.ints_in(&origins, 2 * bucket)?);
    let (dw, dbias) = (gpu.bytes(&packed)?, gpu.vector(&patch_biases("w", &tensor, Some(&bias), &fold)?)?);
    let (y, count) = (gpu.output(dtype, bucket, live, n)?, gpu.count(live)?);
    let op = PatchEmbed {
        dtype,
        pixels: dpixels.all(),
        origins: dorigins.all(),
        side,
        weight: dw.all(),
        bias: dbias.all(),
        scale: PatchFold::scale(&normalization),
        y: y.slice(),
        y_stride: y.ld(),
        rows: bucket,
        n,
        num_rows: Some(count.all()),
    };
    let launches = vec![op.prepare(&gpu.cuda)?];
    Ok(Instance::new(launches, row.work()).expect(&y, Limits::gemm(dtype), move || {
        // The product with rounded folded weights, less what they differ from exact ones at a pixel of 128: that is in
        // the bias, which is not rounded.
        let factors = normalization.line().map(|(factor, _)| factor);
        let parts: Vec<f64> = factors.map(|f| f / factors[0]).to_vec();
        let folded: Vec<f32> =
            w.iter().enumerate().map(|(i, w)| (f64::from(*w) * parts[i % k / (side * side)]) as f32).collect();
        let held = rounded(dtype, &folded);
        let channel = |i: usize| i % k / (side * side);
        let weights: Vec<f32> = (0..n * k).map(|i| (f64::from(held[i]) / parts[channel(i)]) as f32).collect();
        let middle = normalization.line().map(|(factor, offset)| 128.0 * factor + offset);
        let bias: Vec<f32> = (0..n)
            .map(|row| {
                let off = |i: usize| (f64::from(w[i]) - f64::from(weights[i])) * middle[channel(i)];
                (f64::from(bias[row]) + (row * k..(row + 1) * k).map(off).sum::<f64>()) as f32
            })
            .collect();
        let mut want = vec![0.0; live * n];
        if live > 0 {
            let w = Matrix { n, k, data: WeightData::F32(&weights) };
            patch_embed(&mut want, (&pixels, &origins), side, &normalization, &w, Some(&bias))?;
        }
        Ok(want)
    }))
}

#[test]
fn patch_embedding() {
    super::harness::check(&OP);
}
