//! Pixel shuffle and average pooling. Oracle: the definitions as plain loops, written here; the CPU backend has no such
//! operation yet.

use engine::Result;
use engine::backend::cuda::ops::Rows;
use engine::backend::cuda::ops::pool::{Pool, PoolKind};
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work};

pub const OP: Op = Op { name: "pool", cases, shapes };

#[derive(Debug, Clone, Copy)]
struct Grid {
    images: usize,
    /// Images that the bucket has room for beyond those.
    idle: usize,
    height: usize,
    width: usize,
    channels: usize,
    scale: usize,
    skip: usize,
    transposed: bool,
}

fn case(what: &str, kind: PoolKind, dtype: DType, grid: Grid) -> Case {
    Case::new(format!("{} {what}{kind:?} {grid:?}", dtype.name()), move |gpu| build(gpu, kind, dtype, grid))
}

fn cases() -> Vec<Case> {
    let base = Grid { images: 1, idle: 0, height: 2, width: 2, channels: 8, scale: 2, skip: 0, transposed: false };
    let mut all = Vec::new();
    for dtype in FLOATS {
        for kind in [PoolKind::PixelShuffle, PoolKind::Average] {
            for grid in [
                base,
                Grid { images: 2, idle: 1, height: 4, width: 6, channels: 48, ..base },
                Grid { images: 2, height: 6, width: 4, channels: 36, skip: 1, transposed: true, ..base },
                Grid { images: 3, idle: 2, height: 9, width: 3, channels: 7, scale: 3, skip: 5, ..base },
                Grid { height: 4, width: 4, channels: 1024, scale: 4, ..base },
                Grid { height: 3, width: 5, channels: 1, scale: 1, ..base },
            ] {
                all.push(case("", kind, dtype, grid));
            }
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let tile = Grid { images: 4, idle: 0, height: 32, width: 32, channels: 1024, scale: 2, skip: 1, transposed: false };
    let mut all = Vec::new();
    for dtype in FLOATS {
        all.push(case("InternVL: ", PoolKind::PixelShuffle, dtype, tile));
        let pooled = Grid { images: 1, height: 64, width: 64, channels: 1152, scale: 4, skip: 0, ..tile };
        all.push(case("SigLIP 896: ", PoolKind::Average, dtype, pooled));
    }
    all
}

fn build(gpu: &Gpu, kind: PoolKind, dtype: DType, grid: Grid) -> Result<Instance> {
    let Grid { images, idle, height, width, channels, scale, skip, transposed } = grid;
    let parts = if kind == PoolKind::PixelShuffle { scale * scale } else { 1 };
    let out_rows = (height / scale) * (width / scale);
    let mut numbers = Numbers::new(channels as u64);
    let x = numbers.normals(dtype, images * (skip + height * width) * channels, 1.0);
    let dx = gpu.in_place(dtype, &x, (images + idle) * (skip + height * width), channels)?;
    let dy = gpu.output(dtype, (images + idle) * out_rows, images * out_rows, channels * parts)?;
    let count = gpu.count(images * out_rows)?;
    let op = Pool {
        kind,
        dtype,
        x: Rows { slice: dx.slice(), stride: dx.ld() },
        y: Rows { slice: dy.slice(), stride: dy.ld() },
        images: images + idle,
        channels,
        height,
        width,
        scale,
        skip,
        transposed,
        num_rows: Some(count.all()),
    };
    let elements = images * out_rows * channels;
    let work = Work {
        bytes: (elements * (scale * scale + parts) * dtype.size()) as u64,
        flops: if parts == 1 { (elements * scale * scale) as u64 } else { 0 },
    };
    let limits = if kind == PoolKind::Average { Limits::rounding(dtype) } else { Limits::EXACT };
    Ok(Instance::new(vec![op.prepare(&gpu.cuda)?], work).expect(&dy, limits, move || {
        let at = |n: usize, r: usize, c: usize, ch: usize| {
            x[(n * (skip + height * width) + skip + r * width + c) * channels + ch]
        };
        let mut want = Vec::new();
        for n in 0..images {
            for i in 0..out_rows {
                let (down, across) = (height / scale, width / scale);
                let (r, c) = if transposed { (i % down, i / down) } else { (i / across, i % across) };
                let window = || (0..scale).flat_map(|a| (0..scale).map(move |b| (r * scale + a, c * scale + b)));
                match kind {
                    PoolKind::PixelShuffle => {
                        want.extend(
                            window()
                                .flat_map(|(r, c)| (0..channels).map(move |ch| (r, c, ch)))
                                .map(|(r, c, ch)| at(n, r, c, ch)),
                        );
                    }
                    PoolKind::Average => want.extend((0..channels).map(|ch| {
                        let sum: f64 = window().map(|(r, c)| f64::from(at(n, r, c, ch))).sum();
                        (sum / (scale * scale) as f64) as f32
                    })),
                }
            }
        }
        Ok(want)
    }))
}

#[test]
fn pool() {
    super::harness::check(&OP);
}

#[test]
fn windows_that_do_not_tile_are_refused() {
    let Some(gpu) = Gpu::open() else { return };
    let memory = gpu.memory(4096).unwrap();
    let rows = || Rows { slice: memory.all(), stride: 8 };
    let op = Pool {
        kind: PoolKind::Average,
        dtype: DType::Bf16,
        x: rows(),
        y: rows(),
        images: 1,
        channels: 8,
        height: 5,
        width: 4,
        scale: 2,
        skip: 0,
        transposed: false,
        num_rows: None,
    };
    let text = op.prepare(&gpu.cuda).err().expect("5 rows of windows of 2").to_string();
    assert!(text.contains("average_pool") && text.contains("5 x 4"), "{text}");
}
