//! The CUDA chain from kernel source to result, on whatever driver the dynamic linker finds: a GPU's, or the software
//! GPU's (`tools/softgpu/run.sh cargo test --test cuda_kernels`). Without a driver or without kernels the same tests
//! check that this is said, with the next step.

use engine::Error;
use engine::backend::cuda::ops::rmsnorm::RmsNorm;
use engine::backend::cuda::{Cuda, Stream, kernels};
use engine::tensor::DType;
use half::{bf16, f16};

/// Whether the dynamic linker finds a driver, asked without the engine.
fn driver_is_there() -> bool {
    // SAFETY: loads the library that the engine would load.
    unsafe { !libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL).is_null() }
}

/// The device, or none after a check that its absence is explained.
fn open() -> Option<Cuda> {
    let opened = Cuda::open(0);
    let wanted = if kernels::KERNELS.is_empty() {
        "tools/cuda-toolchain.sh"
    } else if !driver_is_there() {
        "libcuda.so.1 cannot be loaded"
    } else {
        return Some(opened.expect("a driver and kernels are there"));
    };
    let error = opened.err().expect("neither driver nor kernels");
    assert!(matches!(error, Error::Device(_)) && error.exit_code() == 6, "{error}");
    let text = error.to_string();
    assert!(text.contains(wanted) && text.contains("--device cpu") && !text.contains('\n'), "{text}");
    None
}

/// Deterministic values in about [-2, 2].
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
    }
}

/// Half a unit in the last place, relative, with room for the rounding of the f32 arithmetic before it.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 2f64.powi(-11) + 2e-6,
        _ => 2f64.powi(-8) + 2e-6,
    }
}

#[test]
fn rmsnorm_agrees_with_float64() {
    let Some(cuda) = open() else { return };
    let stream = Stream::new(cuda.device()).unwrap();
    // Vector kernels of 1, 2 and 4 a thread, widths that fill no block, one that no vector divides, one too wide.
    let shapes = [(3, 64), (2, 72), (5, 2048), (2, 3584), (1, 4096), (2, 8192), (3, 77), (1, 9000), (40, 8)];
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for (rows, hidden) in shapes {
            let eps = 1e-5f32;
            let x = encode(dtype, &values(rows * hidden, 7 + hidden as u64));
            let weight = values(hidden, 99);
            let on_device = |bytes: &[u8]| {
                let buffer = cuda.device().alloc("test", bytes.len()).unwrap();
                buffer.all().copy_from_host(&stream, bytes).unwrap();
                buffer
            };
            let (dx, dw) = (on_device(&x), on_device(&encode(DType::F32, &weight)));
            let dy = on_device(&vec![0xA5; x.len()]);
            let op = RmsNorm {
                dtype,
                x: dx.all(),
                x_stride: hidden,
                weight: dw.all(),
                y: dy.all(),
                y_stride: hidden,
                rows,
                hidden,
                eps,
                num_rows: None,
            };
            op.prepare(&cuda).unwrap().enqueue(&stream).unwrap();
            let mut got = vec![0; x.len()];
            dy.all().copy_to_host(&stream, &mut got).unwrap();
            let (input, got) = (decode(dtype, &x), decode(dtype, &got));
            for row in 0..rows {
                let x = &input[row * hidden..][..hidden];
                let mean = x.iter().map(|v| v * v).sum::<f64>() / hidden as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                for i in 0..hidden {
                    let want = x[i] * scale * f64::from(weight[i]);
                    let got = got[row * hidden + i];
                    let bound = tolerance(dtype) * want.abs() + 1e-7;
                    assert!((got - want).abs() <= bound, "{dtype:?} [{rows}, {hidden}] at {row},{i}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn rmsnorm_leaves_rows_beyond_the_batch_and_works_in_place() {
    let Some(cuda) = open() else { return };
    let stream = Stream::new(cuda.device()).unwrap();
    let (rows, hidden, live) = (6, 128, 4usize);
    let x = encode(DType::Bf16, &values(rows * hidden, 3));
    let buffer = cuda.device().alloc("x", x.len()).unwrap();
    buffer.all().copy_from_host(&stream, &x).unwrap();
    let weight = cuda.device().alloc("weight", hidden * 4).unwrap();
    weight.all().copy_from_host(&stream, &encode(DType::F32, &vec![1.0; hidden])).unwrap();
    let count = cuda.device().alloc("num_rows", 4).unwrap();
    count.all().copy_from_host(&stream, &(live as i32).to_le_bytes()).unwrap();
    let op = RmsNorm {
        dtype: DType::Bf16,
        x: buffer.all(),
        x_stride: hidden,
        weight: weight.all(),
        y: buffer.all(),
        y_stride: hidden,
        rows,
        hidden,
        eps: 1e-6,
        num_rows: Some(count.all()),
    };
    op.prepare(&cuda).unwrap().enqueue(&stream).unwrap();
    let mut got = vec![0; x.len()];
    buffer.all().copy_to_host(&stream, &mut got).unwrap();
    let row_bytes = hidden * 2;
    assert_eq!(got[live * row_bytes..], x[live * row_bytes..], "rows beyond the batch are untouched");
    for row in 0..live {
        let y = decode(DType::Bf16, &got[row * row_bytes..][..row_bytes]);
        let mean = y.iter().map(|v| v * v).sum::<f64>() / hidden as f64;
        assert!((mean - 1.0).abs() < 5e-3, "row {row}: mean square {mean}");
    }
}

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
