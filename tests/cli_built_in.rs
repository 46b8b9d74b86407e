//! The model inside the binary: README's first command, from any folder; and a program that was built without it.

mod cli_support;

use cli_support::{data, engine, finish, path};

/// Whether this tree has the model's files; the program has them then too.
fn is_there() -> bool {
    data().join("../../assets/demo-model/config.json").exists()
}

#[test]
fn the_first_command_answers() {
    let elsewhere = tempfile::tempdir().unwrap();
    let image = path("scenes/circle-above-square.png");
    let run = |args: &[&str]| {
        let mut c = engine();
        c.current_dir(elsewhere.path())
            .args(["run", "--image", &image, "--prompt", "What is in this picture?"])
            .args(args);
        finish(c, b"")
    };
    if !is_there() {
        for args in [&[][..], &["--model", "demo"]] {
            run(args).refused(4, &["built without the built-in model", "--model"]);
        }
        return;
    }
    let out = run(&[]);
    assert_eq!((out.code, out.stdout.as_str()), (Some(0), "A small red circle above a big blue square.\n"), "{out:?}");
    let said: Vec<&str> = out.stderr.lines().collect();
    assert_eq!(said.len(), 1, "{out:?}");
    assert!(said[0].starts_with("no --model: the small built-in one answers; it knows simple scenes"), "{out:?}");
    // By its name it is a model as any other, and nothing is said.
    let named = run(&["--model", "demo", "--json"]).ok().json();
    assert_eq!(
        (&named["text"], &named["model"]),
        (&"A small red circle above a big blue square.".into(), &"demo".into())
    );
    // Nothing was unpacked anywhere.
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn other_commands_have_it_too() {
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(path("scenes/green-triangle.png"), elsewhere.path().join("a.png")).unwrap();
    let command = |args: &[&str]| {
        let mut c = engine();
        c.current_dir(elsewhere.path()).args(args);
        c
    };
    if !is_there() {
        finish(command(&["inspect"]), b"").refused(4, &["built without the built-in model"]);
        finish(command(&["caption", "."]), b"").refused(4, &["built without the built-in model"]);
        return;
    }
    for args in [&["inspect"][..], &["inspect", "demo"]] {
        let text = finish(command(args), b"").ok().stdout;
        assert!(text.contains("<built-in model>"), "{text}");
    }
    let out = finish(command(&["chat", "--image", "a.png"]), b"What shape is this?\n");
    assert_eq!((out.code, out.stdout.as_str()), (Some(0), "triangle\n"), "{out:?}");
    let out = finish(command(&["caption", "."]), b"");
    assert_eq!(out.code, Some(0), "{out:?}");
    let line = std::fs::read_to_string(elsewhere.path().join("captions.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["caption"], &line["model"]), (&"A big green triangle.".into(), &"demo".into()));
}
