//! Upsampling of subsampled components, one row at a time, with libjpeg's bits ("fancy upsampling").
//!
//! In: a row of samples and its neighbour. Out: a row at full width. Owns: which kernel a sampling factor takes.
//! Not here: which rows (`render.rs`).
//!
//! By two, the new samples lie a quarter and three quarters between old ones: 3/4 of the near plus 1/4 of the far one,
//! ties rounded up and down in turn. Other whole factors repeat samples.

use super::Component;

/// How a component comes to full size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upsampling {
    None,
    /// Triangle filter across, down, or both, by two.
    Across,
    Down,
    Both,
    /// Each sample repeated so many times across (and down, which is choosing the row).
    Repeat(usize),
}

impl Upsampling {
    /// None where the factors are not whole.
    pub fn new(max_h: usize, max_v: usize, component: &Component) -> Option<Upsampling> {
        let (h, v) = (component.h, component.v);
        if !max_h.is_multiple_of(h) || !max_v.is_multiple_of(v) {
            return None;
        }
        // libjpeg leaves out the filter across rows of one or two samples.
        let is_wide = component.width > 2;
        Some(match (max_h / h, max_v / v) {
            (1, 1) => Upsampling::None,
            (2, 1) if is_wide => Upsampling::Across,
            (1, 2) => Upsampling::Down,
            (2, 2) if is_wide => Upsampling::Both,
            (across, _) => Upsampling::Repeat(across),
        })
    }
}

/// Expands the row `near` into `out`. `far` is the neighbour that the vertical filter mixes in, `is_upper` tells whether
/// it is the one above. `sums` has room for two samples more than `near`.
pub(super) fn expand(
    upsampling: Upsampling,
    near: &[u8],
    far: &[u8],
    is_upper: bool,
    sums: &mut [u16],
    out: &mut [u8],
    vector: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if vector {
        // SAFETY: `vector` is set only where the processor has AVX2.
        return unsafe { expand_avx2(upsampling, near, far, is_upper, sums, out) };
    }
    let _ = vector;
    expand_any(upsampling, near, far, is_upper, sums, out);
}

/// The same code, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn expand_avx2(upsampling: Upsampling, near: &[u8], far: &[u8], is_upper: bool, sums: &mut [u16], out: &mut [u8]) {
    expand_any(upsampling, near, far, is_upper, sums, out);
}

#[inline(always)]
fn expand_any(upsampling: Upsampling, near: &[u8], far: &[u8], is_upper: bool, sums: &mut [u16], out: &mut [u8]) {
    match upsampling {
        Upsampling::None => out[..near.len()].copy_from_slice(near),
        Upsampling::Repeat(times) => {
            for (target, &sample) in out.chunks_exact_mut(times).zip(near) {
                target.fill(sample);
            }
        }
        Upsampling::Down => {
            let bias = if is_upper { 1 } else { 2 };
            for ((target, &near), &far) in out.iter_mut().zip(near).zip(far) {
                *target = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
            }
        }
        Upsampling::Across => {
            let sums = &mut sums[..near.len() + 2];
            for (sum, &near) in sums[1..].iter_mut().zip(near) {
                *sum = u16::from(near);
            }
            across::<2>(sums, [1, 2], out);
        }
        Upsampling::Both => {
            let sums = &mut sums[..near.len() + 2];
            for ((sum, &near), &far) in sums[1..].iter_mut().zip(near).zip(far) {
                *sum = 3 * u16::from(near) + u16::from(far);
            }
            across::<4>(sums, [8, 7], out);
        }
    }
}

/// The filter across: `sums` has a free place at either end. Even samples take `bias[0]`, odd ones `bias[1]`.
#[inline(always)]
fn across<const SHIFT: u32>(sums: &mut [u16], bias: [u16; 2], out: &mut [u8]) {
    let count = sums.len() - 2;
    sums[0] = sums[1];
    sums[count + 1] = sums[count];
    let (left, middle, right) = (&sums[..count], &sums[1..][..count], &sums[2..][..count]);
    for (((target, &left), &middle), &right) in out.as_chunks_mut::<2>().0.iter_mut().zip(left).zip(middle).zip(right) {
        target[0] = ((3 * middle + left + bias[0]) >> SHIFT) as u8;
        target[1] = ((3 * middle + right + bias[1]) >> SHIFT) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(h: usize, v: usize, width: usize) -> Component {
        Component { h, v, width, height: 8, ..Component::default() }
    }

    #[test]
    fn kernels_follow_the_factors() {
        assert_eq!(Upsampling::new(2, 2, &component(2, 2, 9)), Some(Upsampling::None));
        assert_eq!(Upsampling::new(2, 2, &component(1, 1, 9)), Some(Upsampling::Both));
        assert_eq!(Upsampling::new(2, 2, &component(1, 1, 2)), Some(Upsampling::Repeat(2)));
        assert_eq!(Upsampling::new(4, 1, &component(1, 1, 9)), Some(Upsampling::Repeat(4)));
        assert_eq!(Upsampling::new(3, 1, &component(2, 1, 9)), None);
    }

    #[test]
    fn a_ramp_is_interpolated_and_its_ends_repeat() {
        let (mut sums, mut out) = ([0u16; 6], [0u8; 8]);
        let near = [0, 40, 80, 120];
        expand(Upsampling::Across, &near, &near, true, &mut sums, &mut out, false);
        assert_eq!(out, [0, 10, 30, 50, 70, 90, 110, 120]);
        expand(Upsampling::Both, &near, &[40, 80, 120, 160], true, &mut sums, &mut out, false);
        assert_eq!(out, [10, 20, 40, 60, 80, 100, 120, 130]);
        expand(Upsampling::Down, &[10, 20, 30, 40], &[11, 22, 33, 44], false, &mut sums, &mut out, false);
        assert_eq!(out[..4], [10, 21, 31, 41]);
    }
}
