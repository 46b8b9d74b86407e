//! `cargo bench --bench kernels [-- FILTER...]`: as `engine bench kernels`, but no GPU is no failure.

#[path = "kernels/mod.rs"]
mod kernels;

use engine::cli::bench::KernelArgs;

fn main() {
    // cargo adds --bench.
    let mut filter: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let count = if filter.first().is_some_and(|a| a == "--count") { filter.split_off(1) } else { Vec::new() };
    filter.retain(|a| !a.starts_with("--"));
    let single = !count.is_empty();
    if let Err(e) = kernels::run(&KernelArgs { filter, count, ..KernelArgs::default() }, &[]) {
        eprintln!("kernels: {e}; tools/softgpu/run.sh cargo bench --bench kernels shows counters");
        if single || engine::backend::cuda::driver::Device::count().is_ok() {
            std::process::exit(1);
        }
    }
}
