//! The CUDA chain from kernel source to device, on whatever driver the dynamic linker finds: a GPU's, or the software
//! GPU's (`tools/softgpu/run.sh cargo test --test cuda_kernels`). Without a driver or without kernels the same tests
//! check that this is said, with the next step. What kernels compute: tests/cuda_ops.

#[path = "cuda_ops/device.rs"]
mod device;

use device::open;
use engine::Error;
use engine::backend::cuda::ops::rmsnorm::RmsNorm;
use engine::backend::cuda::{Cuda, Stream};
use engine::tensor::DType;

#[test]
fn mistakes_are_errors() {
    let Some(cuda) = open() else { return };
    let stream = Stream::new(cuda.device()).unwrap();
    let small = cuda.device().alloc("small", 16).unwrap();
    let op = |dtype| RmsNorm {
        dtype,
        x: small.all(),
        x_stride: 64,
        weight: small.all(),
        y: small.all(),
        y_stride: 64,
        rows: 2,
        hidden: 64,
        eps: 1e-6,
        num_rows: None,
    };
    let text = op(DType::F32).prepare(&cuda).err().expect("slices too small").to_string();
    assert!(text.contains("rms_norm: x: needs 512 bytes, got 16"), "{text}");
    assert!(matches!(op(DType::I32).prepare(&cuda), Err(Error::Unsupported(_))));
    assert!(small.slice(8, 9).is_err() && small.slice(usize::MAX, 2).is_err());
    assert!(small.all().copy_from_host(&stream, &[0; 15]).is_err());
    assert!(cuda.kernel("rmsnorm", "no_such_entry").is_err());
    let text = Cuda::open(1000).err().expect("no thousand GPUs").to_string();
    assert!(text.contains("cuda:1000") && text.contains("CUDA_VISIBLE_DEVICES"), "{text}");
    let (free, total) = cuda.device().memory().unwrap();
    assert!(free <= total && total > 0);
    let too_much = cuda.device().alloc("everything", 1 << 50).unwrap_err();
    assert!(matches!(too_much, Error::OutOfMemory { need, .. } if need == 1 << 50), "{too_much}");
}

#[test]
fn devices_are_described() {
    let Some(cuda) = open() else { return };
    let device = cuda.device();
    assert!(!device.name().is_empty() && device.compute_capability() >= (8, 0) && device.multiprocessors() > 0);
    assert_eq!(device.ordinal(), 0);
}
