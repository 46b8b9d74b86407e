//! Every CUDA kernel against the CPU backend's operation, on inputs rounded to the kernel's type: the op case list.
//! On a machine without a GPU: `tools/softgpu/run.sh cargo test --release --workspace --test cuda_ops`.

// Named by path, so that the list finds its files in this folder for benchmarks too, which use more of it.
#[allow(dead_code)]
#[path = "list.rs"]
mod list;

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
