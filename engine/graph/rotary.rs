//! What a rotary embedding turns pairs by: a frequency a pair, and the component of a position that goes with it.
//!
//! In: frequencies, sections. Out: [`Rotary`], always consistent. Not here: how a family makes its frequencies, the
//! rotation.

use std::sync::Arc;

use super::shape::Dim;

/// Angles of a rotary embedding: elements `i` and `i + head_dim / 2` of a head are turned by
/// `positions[component of i] * inv_freq[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    inv_freq: Arc<[f32]>,
    /// By frequency; empty where there is one.
    component: Arc<[i32]>,
    components: usize,
}

impl Rotary {
    /// Positions of one component: `inv_freq` is `[head_dim / 2]`.
    pub fn new(inv_freq: Arc<[f32]>) -> Rotary {
        Rotary { inv_freq, component: Arc::new([]), components: 1 }
    }

    /// Positions of several components: the first `sections[0]` frequencies take component 0, the next `sections[1]`
    /// component 1, and so on. M-RoPE has (time, height, width), a grid of patches (height, width).
    /// `None` where the sections are not as many frequencies as there are.
    pub fn in_sections(inv_freq: Arc<[f32]>, sections: &[usize]) -> Option<Rotary> {
        let all = sections.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
        if all != Some(inv_freq.len()) {
            return None;
        }
        if sections.len() < 2 {
            return Some(Rotary::new(inv_freq));
        }
        let component = (0i32..).zip(sections).flat_map(|(c, n)| std::iter::repeat_n(c, *n)).collect();
        Some(Rotary { inv_freq, component, components: sections.len() })
    }

    /// `[head_dim / 2]`.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Components of a position.
    pub fn components(&self) -> usize {
        self.components
    }

    /// `[head_dim / 2]`, each below [`Rotary::components`]; empty where there is one.
    pub fn component(&self) -> &[i32] {
        &self.component
    }

    /// Shape of the positions of `rows` rows: `[rows]`, or `[components, rows]`.
    pub fn positions(&self, rows: Dim) -> Vec<Dim> {
        positions(self.components, rows)
    }

    /// Where the sections end: component 1 starts at frequency `ends[0]`, component 2 at `ends[1]`. `None` with more
    /// than three components.
    pub fn ends(&self) -> Option<[usize; 2]> {
        let below = |c: i32| self.component.iter().filter(|of| **of <= c).count();
        match self.components {
            1 => Some([self.inv_freq.len(); 2]),
            2 | 3 => Some([below(0), below(1)]),
            _ => None,
        }
    }
}

/// Shape of positions of `components` components.
pub fn positions(components: usize, rows: Dim) -> Vec<Dim> {
    if components == 1 { vec![rows] } else { vec![components.into(), rows] }
}

#[cfg(test)]
mod tests {
    use super::super::Sym;
    use super::*;

    #[test]
    fn sections_name_the_component_of_each_frequency() {
        let inv_freq: Arc<[f32]> = [1.0, 0.5, 0.25, 0.125, 0.0625].into();
        let r = Rotary::in_sections(inv_freq.clone(), &[1, 2, 2]).unwrap();
        assert_eq!((r.components(), r.component(), r.ends()), (3, [0, 1, 1, 2, 2].as_slice(), Some([1, 3])));
        assert_eq!(r.positions(Sym::Tokens.into()), [3.into(), Sym::Tokens.into()]);
        let grid = Rotary::in_sections(inv_freq.clone(), &[3, 2]).unwrap();
        assert_eq!((grid.components(), grid.ends()), (2, Some([3, 5])));
        let plain = Rotary::in_sections(inv_freq.clone(), &[5]).unwrap();
        assert_eq!(plain, Rotary::new(inv_freq.clone()));
        assert_eq!((plain.ends(), plain.positions(Sym::Tokens.into())), (Some([5, 5]), vec![Sym::Tokens.into()]));
        assert!(Rotary::in_sections(inv_freq.clone(), &[1, 1, 1, 1, 1]).unwrap().ends().is_none());
        for wrong in [[2, 2].as_slice(), &[6], &[], &[usize::MAX, 6]] {
            assert!(Rotary::in_sections(inv_freq.clone(), wrong).is_none(), "{wrong:?}");
        }
    }
}
