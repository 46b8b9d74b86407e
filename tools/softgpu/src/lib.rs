//! softgpu: a software GPU. Runs PTX on the CPU, checks it like a sanitizer, counts like a profiler.
//!
//! In: PTX text, launches. Out: results in device memory, faults, counts. The cdylib also exports the CUDA driver API (`driver`),
//! so that programs which load `libcuda.so` run on it unchanged.
//!
//! `ptx` reads text, `lower` turns kernels into `ir`, `exec` runs them, `memory` holds device memory, `gpu` is a device as a
//! Rust value, `counters`, `model` and `report` tell what happened, `device` lists the parts, `driver` is the C ABI.

pub mod counters;
pub mod device;
pub mod driver;
pub mod exec;
pub mod gpu;
pub mod ir;
pub mod lower;
pub mod memory;
pub mod model;
pub mod ptx;
pub mod report;
