//! Rotary embeddings of several position components in a graph, against transformers: tests/data/rotary.json, made by
//! tools/golden/rotary.py.

use engine::backend::cpu::CpuBackend;
use engine::backend::{Backend, Bucket, Input};
use engine::checkpoint::rope::{RopeParameters, RopeScaling};
use engine::graph::{Builder, Layout, Op, Rotary, Shape, Sizes, Sym, plan};
use engine::models::positions::{grid_rotary, rotary};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    /// Of a decoder; none on a grid.
    sections: Option<Vec<usize>>,
    rope_theta: f64,
    head_dim: usize,
    /// `[components][tokens]`.
    positions: Vec<Vec<i32>>,
    /// `[tokens, heads, head_dim]`.
    x: Vec<f32>,
    y: Vec<f32>,
}

fn parameters(rope_theta: f64, mrope_section: Option<Vec<usize>>) -> RopeParameters {
    RopeParameters { rope_theta, partial_rotary_factor: 1.0, scaling: RopeScaling::None, mrope_section }
}

/// Runs `rope` of one graph.
fn turned(rotary: &Rotary, head_dim: usize, positions: &[i32], x: &[f32]) -> Vec<f32> {
    let tokens = positions.len() / rotary.components();
    let b = Builder::new("g");
    let values = b.float_input("x", Shape::matrix(Sym::Tokens, x.len() / tokens));
    let at = b.int_input("positions", rotary.positions(Sym::Tokens.into()));
    let y = b.rope("y", values, at, head_dim, rotary);
    let graph = b.finish(&[y]).unwrap();
    assert!(matches!(graph.node(y).op, Op::Rope { .. }));
    let sizes = Sizes::default().with(Sym::Tokens, tokens);
    let plan = plan::plan(graph, sizes, Layout::HOST, false);
    let mut program = CpuBackend::new().compile(plan, &[Bucket { sizes, decode: false }], &[]).unwrap();
    program.run(&sizes, &[Input::Float(x), Input::Int(positions)], None).unwrap();
    let mut out = Vec::new();
    program.read(0, &mut out).unwrap();
    out
}

#[test]
fn sections_and_grids_equal_the_reference() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/rotary.json")).unwrap();
    assert!(cases.len() >= 4);
    for case in cases {
        let Case { sections, rope_theta, head_dim, positions, x, y } = case;
        let rotary = match &sections {
            Some(_) => rotary(&parameters(rope_theta, sections.clone()), head_dim).unwrap(),
            None => grid_rotary(rope_theta, head_dim).unwrap(),
        };
        assert_eq!(rotary.components(), positions.len());
        let got = turned(&rotary, head_dim, &positions.concat(), &x);
        let worst = got.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == y.len() && worst <= 1e-6, "{sections:?}, head_dim {head_dim}: {worst}");
        // The components differ in it, so that taking another one shows.
        let first = positions[0].repeat(positions.len());
        assert_ne!(got, turned(&rotary, head_dim, &first, &x));
    }
}

#[test]
fn equal_components_are_one_position() {
    let x: Vec<f32> = (0..3 * 28).map(|i| (i as f32).sin()).collect();
    let plain = rotary(&parameters(1e4, None), 14).unwrap();
    let three = rotary(&parameters(1e4, Some(vec![2, 2, 3])), 14).unwrap();
    let positions = [5, 0, 1700];
    assert_eq!(turned(&three, 14, &positions.repeat(3), &x), turned(&plain, 14, &positions, &x));
}

#[test]
fn sections_that_do_not_fit_are_refused() {
    let refused = |sections: &[usize]| rotary(&parameters(1e4, Some(sections.to_vec())), 16).unwrap_err().to_string();
    assert!(refused(&[2, 3, 4]).contains("mrope_section [2, 3, 4]: expected a sum of 8"), "{}", refused(&[2, 3, 4]));
    assert!(refused(&[]).contains("expected a sum of 8"));
    for head_dim in [6, 14, 15] {
        assert!(grid_rotary(1e4, head_dim).unwrap_err().to_string().contains(&format!("head_dim {head_dim}")));
    }
    // Positions of one component where three are turned by.
    let three = rotary(&parameters(1e4, Some(vec![2, 2, 3])), 14).unwrap();
    let b = Builder::new("g");
    let x = b.float_input("x", Shape::matrix(Sym::Tokens, 28));
    let at = b.int_input("positions", [Sym::Tokens.into()]);
    let y = b.rope("y", x, at, 14, &three);
    let error = b.finish(&[y]).unwrap_err().to_string();
    assert!(error.contains("y: rope: input 1: expected Int [3, Tokens], got Int [Tokens]"), "{error}");
}
