//! `engine bench`: a model by stage on the CPU, kernels without a GPU. Kernels on one: cuda_cli.rs.

mod cli_support;

use cli_support::{engine, finish, path};

#[test]
fn a_model_is_measured_by_stage() {
    let mut c = engine();
    let (model, image) = (path("idefics2-tiny"), path("photos/coffee.jpg"));
    c.args(["bench", "model", "--device", "cpu", "--model", &model, "--image", &image, "-n", "4", "--threads", "1"]);
    let out = finish(c, b"").ok().stdout;
    let row = |what: &str| -> String {
        let line =
            out.lines().find(|l| l.starts_with(&format!("| {what} |"))).unwrap_or_else(|| panic!("{what}: {out}"));
        line.split('|').nth(2).unwrap().trim().to_string()
    };
    let number = |text: &str| -> f64 { text.split([' ', ',']).next().unwrap().parse().unwrap() };
    assert_eq!(row("device"), "cpu");
    assert_eq!(row("new tokens"), "4");
    let tokens = row("prompt tokens, of them image");
    let (all, image) = tokens.split_once(", ").unwrap();
    assert!(number(all) > number(image) && number(image) > 0.0, "{tokens}");
    let weights = row("weights read a token");
    assert!(number(&weights) > 0.0 && !weights.starts_with("0 "), "{weights}");
    for what in ["whole request", "read bandwidth, best of before and after", "peak anonymous host memory"] {
        assert!(number(&row(what)) > 0.0, "{what}: {out}");
    }
    let mut one = engine();
    one.args(["bench", "model", "-n", "1"]);
    let out = finish(one, b"");
    assert!(out.code == Some(2) && out.stderr.contains("2.."), "one token takes no decode step: {out:?}");
}

#[test]
fn kernels_without_a_gpu_are_predicted_and_refused() {
    let mut c = engine();
    c.args(["bench", "kernels"]).env_remove("LD_PRELOAD").env_remove("LD_LIBRARY_PATH");
    if std::path::Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists() {
        return;
    }
    let out = finish(c, b"");
    out.refused(6, &["cuda: ", "--device cpu"]);
    assert!(out.stdout.contains("PREDICTED, not measured") && out.stdout.contains("w8a8"), "{out:?}");
    for (args, word) in [
        (&["bench", "kernels", "no such kernel"][..], "rmsnorm"),
        (&["bench", "kernels", "--device", "cpu"][..], "cuda:N"),
    ] {
        let mut c = engine();
        c.args(args);
        finish(c, b"").refused(2, &[word]);
    }
}
