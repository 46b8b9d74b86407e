//! Every CUDA kernel against the CPU backend's operation, on inputs rounded to the kernel's type: the op case list.
//! On a machine without a GPU: `tools/softgpu/run.sh cargo test --release --workspace --test cuda_ops`.

// Named by path, so that the list finds its files in this folder for benchmarks too, which use more of it.
#[allow(dead_code)]
#[path = "list.rs"]
mod list;

use std::collections::BTreeSet;

use engine::backend::cuda::kernels::KERNELS;

/// An entry that no case launches is compared with nothing.
#[test]
fn every_kernel_has_a_case() {
    let Some(gpu) = list::harness::Gpu::open() else { return };
    let multiprocessors = gpu.cuda.device().multiprocessors();
    if multiprocessors != 108 {
        eprintln!("not checked: which kernel a size gets depends on the multiprocessors, {multiprocessors} here");
        return;
    }
    let mut left: BTreeSet<&str> = KERNELS.iter().flat_map(|kernel| entries(kernel.ptx)).collect();
    assert!(left.len() > 200, "{left:?}");
    for op in list::OPS {
        for case in (op.cases)() {
            let instance = (case.build)(&gpu).unwrap_or_else(|e| panic!("{} {}: {e}", op.name, case.name));
            for launch in &instance.launches {
                left.remove(launch.entry());
            }
            gpu.free();
        }
    }
    assert!(left.is_empty(), "no case launches {left:?}");
}

fn entries(ptx: &[u8]) -> impl Iterator<Item = &str> {
    let text = std::str::from_utf8(ptx).expect("PTX is text");
    text.lines().filter_map(|line| line.strip_prefix(".visible .entry ")?.split('(').next())
}

#[test]
fn every_op_has_a_name_of_its_own_and_shapes() {
    let mut names: Vec<&str> = list::OPS.iter().map(|op| op.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), list::OPS.len());
    for op in list::OPS {
        let mut rows: Vec<String> = (op.cases)().into_iter().chain((op.shapes)()).map(|case| case.name).collect();
        assert!(!(op.shapes)().is_empty(), "{}: no shapes of real models", op.name);
        rows.sort_unstable();
        for pair in rows.windows(2) {
            assert_ne!(pair[0], pair[1], "{}: two rows of one name", op.name);
        }
    }
}
