//! Every instruction form that is accepted has a test here, against a definition of its own: exact arithmetic on big
//! integers, matrices, or the text of the PTX ISA. `every_accepted_form_has_a_test` compares the table of accepted forms
//! with the rows; a form without one fails it.

mod case;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod convert;
mod floats;
mod harness;
mod integers;
mod memory;
mod number;
mod tensor;
mod warps;

use std::collections::BTreeSet;

#[test]
fn integers_as_defined() {
    harness::check(&integers::rows(), 1600);
}

#[test]
fn comparisons_as_defined() {
    harness::check(&compare::rows(), 640);
}

#[test]
fn floats_as_defined() {
    harness::check(&floats::rows(), 1600);
}

#[test]
fn conversions_as_defined() {
    harness::check(&convert::rows(), 960);
}

#[test]
fn memory_as_defined() {
    case::check(&memory::cases());
}

#[test]
fn warps_and_control_as_defined() {
    case::check(&warps::cases());
}

#[test]
fn every_accepted_form_has_a_test() {
    let mut tested: BTreeSet<String> = BTreeSet::new();
    for rows in [integers::rows(), compare::rows(), floats::rows(), convert::rows()] {
        tested.extend(rows.into_iter().map(|r| r.op));
    }
    let cases = memory::cases().into_iter().chain(warps::cases()).flat_map(|c| c.about).chain(tensor::ops());
    for op in cases {
        tested.insert(softgpu::lower::forms::without_hints(&op).unwrap_or(op));
    }
    let accepted: BTreeSet<String> = softgpu::lower::forms::all().into_iter().collect();
    let missing: Vec<&String> = accepted.difference(&tested).collect();
    let unknown: Vec<&String> = tested.difference(&accepted).collect();
    assert!(missing.is_empty(), "{} of {} forms have no test: {missing:?}", missing.len(), accepted.len());
    assert!(unknown.is_empty(), "tested and not in the table: {unknown:?}");
}

/// The error of a module whose only instruction, on line 7, is `text`.
fn refused(text: &str) -> String {
    let ptx =
        format!(".version 8.8\n.target sm_90\n.address_size 64\n.entry k()\n{{\n.reg .b32 %r<3>;\n{text}\nret;\n}}\n");
    softgpu::gpu::Gpu::new(1 << 22).unwrap().load(&ptx).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_is_unknown_fails_the_load_with_its_line() {
    assert_eq!(refused("frobnicate.u32 %r1, %r2;"), "PTX line 7: `frobnicate.u32`: unknown opcode `frobnicate`");
    assert_eq!(refused("add.fast.s32 %r1, %r2, %r2;"), "PTX line 7: `add.fast.s32`: unknown modifier `.fast`");
    let together = "PTX line 7: `add.wide.sat.u32`: unknown modifier `.wide`";
    assert_eq!(refused("add.wide.sat.u32 %r1, %r2, %r2;"), together);
    let together = "PTX line 7: `add.sat.u32`: these modifiers do not go together here";
    assert_eq!(refused("add.sat.u32 %r1, %r2, %r2;"), together);
    for form in softgpu::lower::forms::all() {
        assert_eq!(softgpu::lower::forms::check(&form), Ok(()));
        // One word more, one word twice, one word less of those that must be there.
        let more = softgpu::lower::forms::check(&format!("{form}.bogus"));
        assert_eq!(more, Err("unknown modifier `.bogus`".to_string()), "{form}");
    }
    let message = refused("ld.global.L3::keep.u32 %r1, [%r2];");
    assert!(message.contains("unknown modifier `.L3::keep`"), "{message}");
}
