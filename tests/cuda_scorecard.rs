//! No kernel falls behind its committed row in bench/scorecard.json: registers, spills, instructions a multiply, sectors
//! and shared-memory passes over the least.
//!
//! ptxas' figures are checked wherever kernels were built; sectors on the software GPU (`tools/softgpu/run.sh cargo test
//! --test cuda_scorecard`); instructions where tools/scorecard.sh has fetched cuobjdump. The same program writes the
//! committed files, when SCORECARD_WRITE names their folder (tools/scorecard.sh).

mod cli_support;
#[allow(dead_code)]
#[path = "cuda_ops/counted.rs"]
mod counted;
#[allow(dead_code)]
#[path = "cuda_ops/list.rs"]
mod list;
mod scorecard {
    pub mod card;
    pub mod measure;
    pub mod sass;
    pub mod token;
}

use engine::backend::cuda::kernels::KERNELS;
use list::harness::Gpu;
use scorecard::card::{Card, Ratios, Resources, Row, Token, table, worse};
use scorecard::{measure, token};

/// What runs [`child_for_counters`] alone.
const CHILD: &[&str] = &["--exact", "child_for_counters", "--nocapture"];

fn committed() -> Card {
    serde_json::from_str(&file("scorecard.json")).expect("bench/scorecard.json is a card")
}

fn file(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; run tools/scorecard.sh", path.display()))
}

/// All that can be measured here.
fn measured() -> Card {
    let mut card = measure::static_card().expect("kernels disassemble");
    if Gpu::open().is_some_and(|gpu| gpu.soft) {
        measure::count(&mut card, CHILD).expect("every shape runs");
        card.token = Some(token::token().expect("a decoder of zeros runs"));
    }
    card
}

#[test]
fn child_for_counters() {
    if let Err(e) = counted::run_all_as_child() {
        panic!("{e}");
    }
}

#[test]
fn no_kernel_falls_behind_its_row() {
    if KERNELS.is_empty() {
        return;
    }
    let now = measured();
    if let Some(folder) = std::env::var_os("SCORECARD_WRITE") {
        let folder = std::path::PathBuf::from(folder);
        let json = serde_json::to_string_pretty(&now).expect("a card is JSON") + "\n";
        std::fs::write(folder.join("scorecard.json"), json).expect("the folder is writable");
        std::fs::write(folder.join("scorecard.md"), table(&now)).expect("the folder is writable");
        println!("{}", table(&now));
        return;
    }
    let all = worse(&committed(), &now);
    assert!(all.is_empty(), "{} kernels fell behind:\n{}", all.len(), all.join("\n"));
}

#[test]
fn the_table_is_that_of_the_numbers() {
    assert_eq!(table(&committed()), file("scorecard.md"), "run tools/scorecard.sh");
}

#[test]
fn every_way_of_falling_behind_is_found() {
    let resources = |registers, spill_bytes, mma| Resources {
        registers,
        spill_bytes,
        shared_bytes: 0,
        instructions_per_mma: Some(mma),
    };
    let counts = |sectors, passes| Some(Ratios { threads: 128, shared_bytes: 1024, sectors, passes });
    let card = |resources: Resources, counts: Option<Ratios>| Card {
        toolchain: String::new(),
        rows: [(
            "gemm".to_string(),
            Row { file: "gemm".into(), archs: [("80".to_string(), resources)].into(), counts },
        )]
        .into(),
        token: None,
    };
    let good = card(resources(100, 0, 2.0), counts(1.0, 1.0));
    assert_eq!(worse(&good, &good), Vec::<String>::new());
    // A little worse is noise.
    assert_eq!(worse(&good, &card(resources(108, 0, 2.09), counts(1.009, 1.009))), Vec::<String>::new());
    for (bad, wanted) in [
        (card(resources(109, 0, 2.0), counts(1.0, 1.0)), "109 registers, 100 were committed"),
        (card(resources(100, 4, 2.0), counts(1.0, 1.0)), "4 bytes of registers spill"),
        (card(resources(100, 0, 2.11), counts(1.0, 1.0)), "2.11 instructions a multiply, 2.00"),
        (card(resources(100, 0, 2.0), counts(1.02, 1.0)), "1.020 times the least sectors"),
        (card(resources(100, 0, 2.0), counts(1.0, 1.02)), "1.020 times the least shared passes"),
    ] {
        let found = worse(&good, &bad);
        assert!(found.len() == 1 && found[0].contains(wanted) && found[0].contains("gemm"), "{found:?}");
    }
    let token = |launches_a_layer, bytes| Card {
        token: Some(Token { launches_a_layer, launches_beside: 4, bytes }),
        ..good.clone()
    };
    assert_eq!(worse(&token(5, 1.01), &token(5, 1.012)), Vec::<String>::new());
    assert!(worse(&token(5, 1.01), &token(6, 1.01))[0].contains("196 launches, 164 were committed"));
    assert!(worse(&token(5, 1.01), &token(5, 1.03))[0].contains("1.030 times the bytes"));
    // A new entry has nothing to fall behind, and still may not spill.
    assert_eq!(worse(&Card::default(), &good), Vec::<String>::new());
    assert_eq!(worse(&Card::default(), &card(resources(100, 4, 2.0), None)).len(), 1);
}

#[test]
fn a_committed_row_that_is_better_than_the_kernels_fails() {
    // The guard on the kernels themselves: with every committed row ten registers lower, each entry is named.
    let now = measure::static_card().expect("kernels disassemble");
    let mut better = now.clone();
    for row in better.rows.values_mut() {
        for resources in row.archs.values_mut() {
            resources.registers = resources.registers.saturating_sub(10);
        }
    }
    let found = worse(&better, &now);
    let heavy: Vec<_> = now.rows.iter().filter(|(_, r)| r.archs.values().all(|p| p.registers >= 10)).collect();
    assert!(heavy.iter().all(|(entry, _)| found.iter().any(|f| f.starts_with(&format!("{entry} ")))), "{found:?}");
}
