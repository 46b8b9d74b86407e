//! The command-line program; everything it does lives in the library's `cli`, but the benchmark of kernels, whose list of
//! shapes is the tests'.

#[path = "../bench/kernels/mod.rs"]
mod kernels;

fn main() -> std::process::ExitCode {
    engine::cli::main(|args| kernels::run(args, &["bench", "kernels"]))
}
