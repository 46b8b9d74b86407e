//! Link options of the driver library.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The library's own table of entry points must lead to its own functions: without this the dynamic linker would look
    // each up by name, and find another library's, or nothing in a copy whose names run.sh has hidden.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");
}
