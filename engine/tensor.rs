//! Host tensors: element types, bytes in a mapped file or on the heap, typed views.
//!
//! In: bytes with a type and a shape. Out: typed slices. Owns: the bytes, by reference count.
//! Not here: arithmetic.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::{Error, Result};

/// Element type of a tensor, by safetensors' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::Bf16 | DType::I16 | DType::U16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I16 => "I16",
            DType::I8 => "I8",
            DType::U64 => "U64",
            DType::U32 => "U32",
            DType::U16 => "U16",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
        }
    }

    /// The inverse of [`DType::name`].
    pub fn from_name(name: &str) -> Option<DType> {
        use DType::*;
        [F64, F32, F16, Bf16, I64, I32, I16, I8, U64, U32, U16, U8, Bool].into_iter().find(|d| d.name() == name)
    }
}

/// Where a tensor's bytes lie.
#[derive(Clone)]
pub enum HostBytes {
    /// A range of a mapped file.
    Mapped { map: Arc<memmap2::Mmap>, range: Range<usize> },
    /// A part of the program's own image.
    Static(&'static [u8]),
    /// The heap. A `Vec<u64>` so that every element type is aligned; `len` is in bytes.
    Owned { words: Arc<Vec<u64>>, len: usize },
}

impl HostBytes {
    /// Copies bytes to the heap.
    pub fn copy_from(bytes: &[u8]) -> HostBytes {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        HostBytes::Owned { words: Arc::new(words), len: bytes.len() }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            HostBytes::Mapped { map, range } => &map[range.clone()],
            HostBytes::Static(bytes) => bytes,
            HostBytes::Owned { words, len } => &bytemuck::cast_slice::<u64, u8>(words)[..*len],
        }
    }
}

/// An immutable row-major tensor in host memory; clones share the bytes.
#[derive(Clone)]
pub struct HostTensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: HostBytes,
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostTensor({}{:?})", self.dtype.name(), self.shape)
    }
}

impl HostTensor {
    /// A tensor over bytes whose length must be `shape.product() * dtype.size()`.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: HostBytes) -> Result<HostTensor> {
        let want = shape.iter().try_fold(dtype.size(), |a, &d| a.checked_mul(d));
        let got = bytes.as_slice().len();
        if want != Some(got) {
            return Err(Error::Internal(format!("tensor {}{shape:?} over {got} bytes", dtype.name())));
        }
        Ok(HostTensor { dtype, shape, bytes })
    }

    /// Copies f32 values; `data.len()` must equal the product of `shape`.
    pub fn from_f32(shape: Vec<usize>, data: &[f32]) -> HostTensor {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        HostTensor { dtype: DType::F32, shape, bytes: HostBytes::copy_from(bytemuck::cast_slice(data)) }
    }

    /// Copies i32 values; `data.len()` must equal the product of `shape`.
    pub fn from_i32(shape: Vec<usize>, data: &[i32]) -> HostTensor {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        HostTensor { dtype: DType::I32, shape, bytes: HostBytes::copy_from(bytemuck::cast_slice(data)) }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, little-endian, row-major. Mapped tensors may be unaligned.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The storage, to clone without a copy.
    pub fn storage(&self) -> &HostBytes {
        &self.bytes
    }

    /// The same bytes under another shape of equal size.
    pub fn reshape(&self, shape: Vec<usize>) -> Result<HostTensor> {
        HostTensor::new(self.dtype, shape, self.bytes.clone())
    }

    /// The elements as `T`, without a copy. Errors when `T`'s size differs from the dtype's or a mapped
    /// tensor is not aligned for `T`; use [`HostTensor::aligned`] first where that may happen.
    pub fn as_slice<T: bytemuck::Pod>(&self) -> Result<&[T]> {
        if std::mem::size_of::<T>() != self.dtype.size() {
            return Err(Error::Internal(format!("{self:?} read as {}", std::any::type_name::<T>())));
        }
        bytemuck::try_cast_slice(self.bytes()).map_err(|e| Error::Internal(format!("{self:?}: {e}")))
    }

    /// This tensor, copied to the heap only where its bytes are not aligned for its dtype.
    pub fn aligned(&self) -> HostTensor {
        let aligned = (self.bytes().as_ptr() as usize).is_multiple_of(self.dtype.size());
        let bytes = if aligned { self.bytes.clone() } else { HostBytes::copy_from(self.bytes()) };
        HostTensor { bytes, ..self.clone() }
    }

    /// The elements as f32; borrowed where they are stored so. F64 is rounded; integers are converted.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        let b = self.bytes();
        fn map<const N: usize>(b: &[u8], f: impl Fn([u8; N]) -> f32) -> Cow<'static, [f32]> {
            Cow::Owned(b.as_chunks::<N>().0.iter().map(|c| f(*c)).collect())
        }
        Ok(match self.dtype {
            DType::F32 => match bytemuck::try_cast_slice(b) {
                Ok(s) => Cow::Borrowed(s),
                Err(_) => map(b, f32::from_le_bytes),
            },
            DType::F16 => map(b, |c| f16::from_le_bytes(c).to_f32()),
            DType::Bf16 => map(b, |c| bf16::from_le_bytes(c).to_f32()),
            DType::F64 => map(b, |c| f64::from_le_bytes(c) as f32),
            DType::I32 => map(b, |c| i32::from_le_bytes(c) as f32),
            DType::I64 => map(b, |c| i64::from_le_bytes(c) as f32),
            DType::U8 => map(b, |c: [u8; 1]| c[0] as f32),
            d => return Err(Error::Unsupported(format!("{} tensor read as f32", d.name()))),
        })
    }
}
