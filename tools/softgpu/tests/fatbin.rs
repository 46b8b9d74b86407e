//! PTX out of fatbins as nvcc 13 writes them: stored, LZ4, zstd; machine code is refused; damaged ones are told.
//! Source: guest/small.cu, made by guest/make_ptx.sh.

use softgpu::driver::fatbin::ptx;
use softgpu::gpu::{Gpu, Shape};

const NONE: &[u8] = include_bytes!("../guest/small.none.fatbin");
const SPEED: &[u8] = include_bytes!("../guest/small.speed.fatbin");
const SIZE: &[u8] = include_bytes!("../guest/small.size.fatbin");
const CUBIN: &[u8] = include_bytes!("../guest/small.cubin.fatbin");

/// The text of an image.
fn text(image: &[u8], arch: u32) -> Result<String, u32> {
    // SAFETY: the image says its size; what reads it by its text ends at the NUL behind it.
    unsafe { ptx([image, &[0; 16]].concat().as_ptr(), arch) }
}

#[test]
fn every_packing_gives_the_same_text_and_it_runs() {
    let plain = text(NONE, 80).unwrap();
    assert!(plain.contains(".visible .entry triple("), "{plain}");
    assert_eq!(text(SPEED, 80).unwrap(), plain, "LZ4");
    assert_eq!(text(SIZE, 80).unwrap(), plain, "zstd");
    let mut gpu = Gpu::new(1 << 24).unwrap();
    let module = gpu.load(&plain).unwrap();
    let x: Vec<u8> = (0..100).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let (x, y) = (gpu.upload(&x).unwrap(), gpu.upload(&[0; 400]).unwrap());
    let shape = Shape { grid: [1; 3], block: [128, 1, 1], shared: 0 };
    gpu.launch(&module.kernels["triple"], shape, &[&x.to_le_bytes(), &y.to_le_bytes(), &100u32.to_le_bytes()]).unwrap();
    let out = gpu.download(y, 400);
    for (i, v) in out.chunks(4).enumerate() {
        assert_eq!(f32::from_le_bytes(v.try_into().unwrap()), 3.0 * i as f32);
    }
}

#[test]
fn a_wrapper_leads_to_its_container() {
    // __cudaFatCubin: magic, version, pointer.
    let image = [SIZE, &[0; 16]].concat();
    let mut wrapper = [0x4662_43b1u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
    wrapper.extend((image.as_ptr() as u64).to_le_bytes());
    wrapper.extend([0; 8]);
    assert_eq!(text(&wrapper, 80), text(NONE, 80));
}

#[test]
fn what_does_not_suit_or_is_damaged_has_its_error() {
    // CUDA_ERROR_NO_BINARY_FOR_GPU: PTX for a newer part, and machine code alone.
    assert_eq!(text(SIZE, 75), Err(209));
    assert_eq!(text(CUBIN, 80), Err(209));
    // CUDA_ERROR_INVALID_IMAGE: the magic numbers of a container and of a zstd frame broken, a length that leads outside.
    let broken = |at: usize, v: u8| {
        let mut image = SIZE.to_vec();
        image[at] = v;
        text(&image, 80)
    };
    assert_eq!(broken(0x60, 0), Err(200));
    assert_eq!(broken(0x19, 0xff), Err(200));
    let mut short = SPEED.to_vec();
    short[0x20] = short[0x20].wrapping_sub(0x40);
    assert_eq!(text(&short, 80), Err(200));
}
