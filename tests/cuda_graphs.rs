//! Small graphs with what no family of the golden cases has, on a GPU: every node against the CPU from the same inputs
//! (engine::inspect::backends). On a machine without a GPU: `tools/softgpu/run.sh cargo test --test cuda_graphs`.

#[path = "cuda_ops/device.rs"]
mod device;

use std::sync::Arc;

use engine::backend::cuda::{Cuda, CudaBackend, CudaOptions};
use engine::backend::{Bucket, Input};
use engine::graph::fuse::fuse;
use engine::graph::{Builder, Dim, Graph, Heads, Normalization, Rotary, Sizes, Sym, plan};
use engine::input::image::RgbImage;
use engine::inspect::backends::BackendComparison;
use engine::models::patches::Patches;
use engine::tensor::{DType, HostTensor};

/// Numbers from -1 to 1 that repeat from run to run.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// A graph on a GPU beside the CPU.
struct Beside {
    comparison: BackendComparison,
    program: Box<dyn engine::backend::Program>,
    ops: Vec<&'static str>,
}

/// Compiles for `buckets`, weights from -spread to spread.
fn beside(cuda: &Arc<Cuda>, graph: &Graph, buckets: &[Bucket], spread: f32) -> Beside {
    let comparison = BackendComparison::default();
    let options = CudaOptions { dtype: DType::Bf16, capture: false, batch_invariant: false };
    let gpu = CudaBackend::new(cuda.clone(), options).unwrap();
    let mut backend = comparison.wrap(Box::new(gpu));
    let fused = fuse(graph, backend.fusion()).unwrap();
    let ops = fused.nodes.iter().map(|n| n.op.name()).collect();
    let weights: Vec<_> = (0..)
        .zip(&fused.weights)
        .map(|(i, w)| {
            let values: Vec<f32> = numbers(w.shape.iter().product(), i).iter().map(|v| v * spread).collect();
            let tensor = HostTensor::from_f32(w.shape.clone(), &values);
            backend.upload(&w.name, &tensor, w.matrix).unwrap()
        })
        .collect();
    let largest = buckets.last().expect("a bucket").sizes;
    let plan = plan::plan(fused, largest, backend.layout(), true);
    Beside { comparison, program: backend.compile(plan, buckets, &weights).unwrap(), ops }
}

/// A decoder of one layer whose tokens have positions of several components, that differ.
#[test]
fn positions_of_several_components_turn_q_and_k() {
    let Some(cuda) = device::open() else { return };
    let cuda = Arc::new(cuda);
    let inv_freq = |pairs: usize| (0..pairs).map(|i| 1.0 / 30f32.powi(i as i32)).collect::<Vec<_>>();
    // Taken by one launch; odd sections and four components, which are not.
    for (head_dim, sections) in [(20, [2, 4, 4].as_slice()), (14, &[2, 2, 3]), (16, &[2, 2, 2, 2])] {
        let rotary = Rotary::in_sections(inv_freq(head_dim / 2).into(), sections).unwrap();
        let b = Builder::new("decoder");
        let step = b.decoder_inputs(rotary.components());
        let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim, scale: 0.3 };
        let x = b.embedding("embed", step.token_ids, 50, 36);
        let x = b.rms_norm("norm", x, 1e-5);
        let [q, k, v] = [("q", 4), ("k", 2), ("v", 2)].map(|(name, n)| b.linear(name, x, n * head_dim));
        let q = b.rope("q_rope", q, step.positions, head_dim, &rotary);
        let k = b.rope("k_rope", k, step.positions, head_dim, &rotary);
        let h = b.cached_attention("attention", [q, k, v], 0, &step, heads, None);
        let h = b.linear("out", h, 24);
        let graph = b.finish(&[h]).unwrap();

        let state = Sizes::default().with(Sym::Pages, 4).with(Sym::Blocks, 2);
        let bucket = |tokens: usize, seqs: usize, decode: bool| Bucket {
            sizes: state.with(Sym::Tokens, tokens).with(Sym::Seqs, seqs).with(Sym::LogitRows, seqs),
            decode,
        };
        let mut beside = beside(&cuda, &graph, &[bucket(2, 2, true), bucket(8, 2, false), bucket(40, 2, false)], 0.4);
        assert!(beside.ops.contains(&"qkv_rope"), "{:?}", beside.ops);
        // Two sequences: prompts of 19 and 2, of 1 and 4 tokens, then a token each.
        let mut lengths = [0usize; 2];
        for (step, counts) in [[19, 2], [1, 4], [1, 1]].into_iter().enumerate() {
            let tokens: usize = counts.iter().sum();
            let ids: Vec<i32> = (0..tokens).map(|t| ((t * 13 + step) % 50) as i32).collect();
            let positions: Vec<i32> =
                (0..sections.len() * tokens).map(|i| ((i * i * 7 + step * 31) % 97) as i32).collect();
            let cu = [0, counts[0] as i32, tokens as i32];
            let slots: Vec<i32> = (0..2)
                .flat_map(|s| {
                    (lengths[s]..lengths[s] + counts[s]).map(move |t| ((2 * s + t / 16) * 16 + t % 16) as i32)
                })
                .collect();
            (0..2).for_each(|s| lengths[s] += counts[s]);
            let context = lengths.map(|n| n as i32);
            let inputs = [&ids[..], &vec![-1; tokens], &positions, &cu, &context, &[0, 1, 2, 3], &slots, &[0, 1]];
            let sizes = bucket(tokens, 2, false).sizes;
            beside.program.run(&sizes, &inputs.map(Input::Int), None).unwrap();
        }
        let report = beside.comparison.report();
        assert!(report.first.is_none() && report.rows.iter().all(|r| r.runs == 3), "{sections:?}: {report}");
    }
}

/// Patches of an odd size from bytes, normalised with three factors, for images of several sizes and for none.
#[test]
fn patches_are_embedded_from_bytes() {
    let Some(cuda) = device::open() else { return };
    let side = 5;
    let normalize = Some(([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]));
    let b = Builder::new("encoder");
    let pixels = b.byte_input("pixels", Dim::times(Sym::Patches, 3 * side * side));
    let origins = b.int_input("patch_origins", [Sym::Patches.into(), 2.into()]);
    let x =
        b.patch_embed("embed", [pixels, origins], 70, side, &Normalization { rescale: Some(1.0 / 255.0), normalize });
    let x = b.linear("head", x, 24);
    let graph = b.finish(&[x]).unwrap();
    let sizes = |patches: usize| Sizes::default().with(Sym::Patches, patches);
    let buckets = [16, 80].map(|n| Bucket { sizes: sizes(n), decode: false });
    let mut beside = beside(&Arc::new(cuda), &graph, &buckets, 0.1);
    for images in [[(2, 3), (1, 5)].as_slice(), &[(7, 9), (1, 1)], &[]] {
        let mut patches = Patches::default();
        for (i, (rows, cols)) in images.iter().enumerate() {
            let (height, width) = (rows * side + i, cols * side + 2 * i);
            let pixels = (0..height * width * 3).map(|p| (p * p % 251 + i) as u8).collect();
            patches.push(&RgbImage { width, height, pixels }, side);
        }
        let inputs = [Input::Byte(&patches.pixels), Input::Int(&patches.origins)];
        beside.program.run(&sizes(patches.origins.len() / 2), &inputs, None).unwrap();
    }
    let report = beside.comparison.report();
    assert!(report.first.is_none() && report.rows.len() == 2 && report.rows[0].runs == 3, "{report}");
}
