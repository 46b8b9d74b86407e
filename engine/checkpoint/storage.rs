//! Element types of stored weights: a weight in the type that the user asked for.
//!
//! In: a tensor as stored. Out: the same, or a rounded copy. Not here: what a backend computes in.

use half::{bf16, f16};

use crate::tensor::{DType, HostBytes, HostTensor};
use crate::{Error, Result};

/// `tensor` with elements rounded (to nearest, ties to even) to `dtype`; without a copy where it is stored so.
/// A narrower type than the stored one loses bits, a wider one only takes memory and is not made.
/// Errors name the tensor: a finite value that overflows f16.
pub fn convert(name: &str, tensor: HostTensor, dtype: Option<DType>) -> Result<HostTensor> {
    let Some(dtype) = dtype.filter(|d| *d != tensor.dtype()) else { return Ok(tensor) };
    let words: Vec<u16> = match dtype {
        DType::Bf16 => tensor.to_f32()?.iter().map(|x| bf16::from_f32(*x).to_bits()).collect(),
        DType::F16 => {
            let values = tensor.to_f32()?;
            let words: Vec<u16> = values.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
            let overflow = |(x, w): (&f32, &u16)| x.is_finite() && !f16::from_bits(*w).is_finite();
            if let Some(i) = values.iter().zip(&words).position(overflow) {
                return Err(Error::Checkpoint(format!(
                    "{name}: expected values that f16 can hold, got {} at element {i}; use --dtype bf16 or f32",
                    values[i]
                )));
            }
            words
        }
        // The arithmetic is f32 already.
        _ => return Ok(tensor),
    };
    HostTensor::new(dtype, tensor.shape().to_vec(), HostBytes::copy_from(bytemuck::cast_slice(&words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_refuses_overflow() {
        let t = HostTensor::from_f32(vec![2], &[1.001, 70000.0]);
        let b = convert("w", t.clone(), Some(DType::Bf16)).unwrap();
        assert_eq!((b.dtype(), b.to_f32().unwrap()[0]), (DType::Bf16, 1.0));
        assert!(convert("w", t.clone(), Some(DType::F16)).unwrap_err().to_string().contains("w: expected values"));
        assert_eq!(convert("w", t.clone(), None).unwrap().bytes().as_ptr(), t.bytes().as_ptr());
        assert_eq!(convert("w", b, Some(DType::F32)).unwrap().dtype(), DType::Bf16);
    }
}
