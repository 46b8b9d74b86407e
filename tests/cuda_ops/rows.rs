//! Rows from one place to another: embedding, embed_merge, gather, scatter, broadcast, concat. Oracle:
//! engine/backend/cpu/gather.rs. Nothing is computed, so the bits are equal.

use engine::Result;
use engine::backend::cpu::{Matrix, WeightData, gather};
use engine::backend::cuda::ops::Rows;
use engine::backend::cuda::ops::rows::{MoveRows, RowMove};
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work};

pub const OP: Op = Op { name: "rows", cases, shapes };

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Embedding,
    EmbedMerge,
    Gather,
    Scatter,
    Broadcast,
}

/// `live` rows of the batch in a bucket of `rows`, out of (or into) a table of `table` rows.
fn case(what: &str, kind: Kind, dtype: DType, (live, rows, width, table): (usize, usize, usize, usize)) -> Case {
    let name = format!("{} {what}{kind:?} {live} of [{rows}, {width}], table {table}", dtype.name());
    Case::new(name, move |gpu| build(gpu, kind, dtype, live, rows, width, table))
}

/// Segments of `lengths` rows: (of a, of b).
fn concat(what: &str, dtype: DType, lengths: &[(usize, usize)], idle: usize, width: usize) -> Case {
    let name = format!("{} {what}concat of {lengths:?} + {idle} idle, width {width}", dtype.name());
    let lengths = lengths.to_vec();
    Case::new(name, move |gpu| build_concat(gpu, dtype, &lengths, idle, width))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for kind in [Kind::Embedding, Kind::EmbedMerge, Kind::Gather, Kind::Scatter, Kind::Broadcast] {
            for shape in [
                (1, 1, 1, 1),
                (5, 9, 36, 11),
                (7, 7, 48, 40),
                (64, 64, 8, 70),
                (3, 4, 2056, 6),
                (6, 6, 588, 6),
                (0, 3, 64, 4),
            ] {
                all.push(case("", kind, dtype, shape));
            }
        }
        let segments: [&[(usize, usize)]; 6] = [
            &[(1, 1)],
            &[(0, 3)],
            &[(4, 0)],
            &[(0, 0), (3, 2), (0, 0), (0, 5), (7, 0), (0, 0)],
            &[(40, 64), (17, 64)],
            &[(2, 3); 33],
        ];
        for lengths in segments {
            for width in [48, 36] {
                all.push(concat("", dtype, lengths, 0, width));
                all.push(concat("", dtype, lengths, 2, width));
            }
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for rows in [1, 4, 16, 64, 1024] {
            all.push(case("Llama-3.1-8B: ", Kind::EmbedMerge, dtype, (rows, rows, 4096, 2048)));
        }
        all.push(case("Llama-3.1-8B: ", Kind::Gather, dtype, (64, 64, 4096, 1024)));
        all.push(case("Idefics2-8b: ", Kind::Scatter, dtype, (320, 320, 4096, 640)));
        all.push(concat("Idefics2-8b: ", dtype, &[(1225, 64); 5], 0, 4096));
    }
    all
}

/// The oracle's view of a table.
fn matrix<'a>(table: &'a [f32], width: usize) -> Matrix<'a> {
    Matrix { n: table.len() / width, k: width, data: WeightData::F32(table) }
}

fn build(
    gpu: &Gpu,
    kind: Kind,
    dtype: DType,
    live: usize,
    rows: usize,
    width: usize,
    table_rows: usize,
) -> Result<Instance> {
    let mut numbers = Numbers::new((width * 31 + rows) as u64);
    let table = numbers.normals(dtype, table_rows * width, 1.0);
    let slab = numbers.normals(dtype, table_rows * width, 1.0);
    let x = numbers.normals(dtype, live * width, 1.0);
    let mut ids: Vec<i32> = (0..live).map(|_| numbers.below(table_rows) as i32).collect();
    // Every third from the slab; a skipped row of a scatter.
    let image_rows: Vec<i32> = (0..live).map(|t| if t % 3 == 1 { ids[live - 1 - t] } else { -1 }).collect();
    if kind == Kind::EmbedMerge {
        // The token of an image row is not looked at.
        for (id, row) in ids.iter_mut().zip(&image_rows).filter(|(_, row)| **row >= 0) {
            *id = -7 - *row;
        }
    }
    let scatter: Vec<i32> = (0..live).map(|i| if i % 4 == 2 { -1 } else { (table_rows - 1 - i) as i32 }).collect();

    let upload = |values: &[f32]| gpu.matrix(dtype, values, width);
    let (dtable, dslab, dx) = (upload(&table)?, upload(&slab)?, gpu.in_place(dtype, &x, rows, width)?);
    let index = |values: &[i32]| gpu.ints_in(values, rows);
    let (dids, dimage, dscatter, count) = (index(&ids)?, index(&image_rows)?, index(&scatter)?, gpu.count(live)?);
    let y = match kind {
        Kind::Scatter => gpu.in_place(dtype, &slab, table_rows, width)?,
        _ => gpu.output(dtype, rows, live, width)?,
    };
    let table_operand = Rows { slice: dtable.slice(), stride: dtable.ld };
    let op = MoveRows {
        kind: match kind {
            Kind::Embedding => RowMove::Embedding { table: table_operand, ids: dids.all() },
            Kind::Gather => RowMove::Gather { x: table_operand, index: dids.all() },
            Kind::EmbedMerge => RowMove::EmbedMerge {
                table: table_operand,
                ids: dids.all(),
                image_rows: dimage.all(),
                slab: Rows { slice: dslab.slice(), stride: dslab.ld },
            },
            Kind::Scatter => RowMove::Scatter { x: Rows { slice: dx.slice(), stride: dx.ld() }, index: dscatter.all() },
            Kind::Broadcast => RowMove::Broadcast { x: table_operand, period: table_rows },
        },
        dtype,
        y: Rows { slice: y.slice(), stride: y.ld() },
        rows,
        width,
        num_rows: Some(count.all()),
    };
    let work = Work { bytes: (2 * live * width * dtype.size() + 4 * live + 4) as u64, flops: 0 };
    Ok(Instance::new(vec![op.prepare(&gpu.cuda)?], work).expect(&y, Limits::EXACT, move || {
        let mut want = vec![0.0; live * width];
        match kind {
            Kind::Embedding => gather::embedding(&mut want, &matrix(&table, width), &ids)?,
            Kind::EmbedMerge => gather::embed_merge(&mut want, &matrix(&table, width), &ids, &image_rows, &slab)?,
            Kind::Gather => gather::gather_rows(&mut want, &table, &ids, width)?,
            Kind::Scatter => {
                want = slab;
                gather::scatter_rows(&mut want, &x, &scatter, width)?;
            }
            // Copies of the whole table, of which the batch takes some.
            Kind::Broadcast => {
                let mut copies = vec![0.0; live.next_multiple_of(table_rows) * width];
                gather::broadcast_rows(&mut copies, &matrix(&table, width))?;
                want.copy_from_slice(&copies[..live * width]);
            }
        }
        Ok(want)
    }))
}

fn build_concat(gpu: &Gpu, dtype: DType, lengths: &[(usize, usize)], idle: usize, width: usize) -> Result<Instance> {
    let mut numbers = Numbers::new(lengths.len() as u64);
    let sums = |of: fn(&(usize, usize)) -> usize| -> Vec<i32> {
        std::iter::once(0)
            .chain(lengths.iter().scan(0, |at, pair| {
                *at += of(pair) as i32;
                Some(*at)
            }))
            .collect()
    };
    let (cu_a, cu_b) = (sums(|p| p.0), sums(|p| p.1));
    let total = |cu: &[i32]| cu[cu.len() - 1] as usize;
    let live = total(&cu_a) + total(&cu_b);
    let a = numbers.normals(dtype, total(&cu_a) * width, 1.0);
    let b = numbers.normals(dtype, total(&cu_b) * width, 1.0);
    let (da, db) = (gpu.matrix(dtype, &a, width)?, gpu.matrix(dtype, &b, width)?);
    // The bucket has room for more segments, of which nothing is written.
    let (dcu_a, dcu_b) = (gpu.ints_in(&cu_a, cu_a.len() + idle)?, gpu.ints_in(&cu_b, cu_b.len() + idle)?);
    let (count, segments) = (gpu.count(live)?, gpu.count(lengths.len())?);
    let rows = live + idle;
    let y = gpu.output(dtype, rows, live, width)?;
    let op = MoveRows {
        kind: RowMove::Concat {
            a: Rows { slice: da.slice(), stride: da.ld },
            cu_a: dcu_a.all(),
            b: Rows { slice: db.slice(), stride: db.ld },
            cu_b: dcu_b.all(),
            segments: lengths.len() + idle,
            num_segments: Some(segments.all()),
        },
        dtype,
        y: Rows { slice: y.slice(), stride: y.ld() },
        rows,
        width,
        num_rows: Some(count.all()),
    };
    let work = Work { bytes: (2 * live * width * dtype.size() + 8) as u64, flops: 0 };
    Ok(Instance::new(vec![op.prepare(&gpu.cuda)?], work).expect(&y, Limits::EXACT, move || {
        let mut want = vec![0.0; live * width];
        gather::concat_segments(&mut want, &a, &cu_a, &b, &cu_b, width)?;
        Ok(want)
    }))
}

#[test]
fn rows() {
    super::harness::check(&OP);
}
