//! What becomes of pictures that have a caption.

use crate::folder::Folder;

#[test]
fn sidecars_are_kept_replaced_joined_or_redone() {
    // The new captions, from a folder without old ones.
    let fresh = Folder::new(&["a.png", "b.png", "c.png"]);
    fresh.ok(&[".", "--sidecar", "txt"]);
    let new = fresh.contents("txt");
    let flat = |name: &str| new[name].trim_end().to_string();
    let run = |mode: &str| {
        let folder = Folder::new(&["a.png", "b.png", "c.png"]);
        folder.write("a.txt", "old\n");
        folder.write("b.txt", " \n");
        let said = folder.ok(&[".", "--sidecar", "txt", "--existing", mode]);
        (folder.contents("txt"), said)
    };
    let (got, said) = run("skip");
    assert_eq!((&*got["a.txt"], &*got["b.txt"], &got["c.txt"]), ("old\n", " \n", &new["c.txt"]));
    assert!(said.contains("1 ok, 2 skipped, 0 failed"), "{said}");
    assert_eq!(run("overwrite").0, new);
    let (got, _) = run("append");
    assert_eq!(got["a.txt"], format!("old {}\n", flat("a.txt")));
    assert_eq!(got["b.txt"], new["b.txt"]);
    let (got, _) = run("prepend");
    assert_eq!(got["a.txt"], format!("{} old\n", flat("a.txt")));
    let (got, said) = run("redo-empty");
    assert_eq!((&*got["a.txt"], &got["b.txt"], &got["c.txt"]), ("old\n", &new["b.txt"], &new["c.txt"]));
    assert!(said.contains("2 ok, 1 skipped"), "{said}");
}

#[test]
fn lines_are_kept_replaced_joined_or_redone() {
    let fresh = Folder::new(&["a.png", "b.png"]);
    fresh.ok(&["."]);
    let new = |p: &str| fresh.caption_of(p);
    let run = |mode: &str| {
        let folder = Folder::new(&["a.png", "b.png"]);
        folder.write("captions.jsonl", "{\"path\":\"a.png\",\"caption\":\"old\",\"seconds\":1}\n{\"path\":\"b.png\",\"caption\":\"\",\"seconds\":1}\n{\"path\":\"gone.png\",\"caption\":\"kept\",\"seconds\":1}\n");
        folder.ok(&[".", "--existing", mode]);
        assert_eq!(folder.caption_of("gone.png"), "kept");
        (folder.caption_of("a.png"), folder.caption_of("b.png"))
    };
    assert_eq!(run("skip"), ("old".to_string(), String::new()));
    assert_eq!(run("overwrite"), (new("a.png"), new("b.png")));
    assert_eq!(run("append"), (format!("old {}", new("a.png")), new("b.png")));
    assert_eq!(run("prepend"), (format!("{} old", new("a.png")), new("b.png")));
    assert_eq!(run("redo-empty"), ("old".to_string(), new("b.png")));
}

/// A run that ended is not gone on with: the same command does its work again.
#[test]
fn a_run_that_ended_is_done_again_where_asked() {
    let folder = Folder::new(&["a.png"]);
    let args = [".", "--sidecar", "txt", "--existing", "append"];
    folder.ok(&args);
    let once = folder.text("a.txt");
    folder.ok(&args);
    assert_eq!(folder.text("a.txt"), format!("{0} {0}\n", once.trim_end()));
}

#[test]
fn other_settings_keep_captions_and_say_so() {
    let folder = Folder::new(&["a.png", "b.png"]);
    folder.ok(&["."]);
    let before = folder.text("captions.jsonl");
    let said = folder.ok(&[".", "--prompt", "Something else?"]);
    assert!(said.contains("skipped, with a caption made otherwise: 2"), "{said}");
    assert_eq!(folder.text("captions.jsonl"), before);
    folder.ok(&[".", "--prompt", "Something else?", "--existing", "overwrite"]);
    assert_eq!(folder.captions("captions.jsonl").len(), 2);
    assert_ne!(folder.text("captions.jsonl"), before);
}

/// Sidecars of captions that are known are written without the model.
#[test]
fn sidecars_come_back_from_the_caption_file() {
    let folder = Folder::new(&["a.png", "b.png"]);
    folder.ok(&[".", "--sidecar", "txt"]);
    let before = (folder.contents("txt"), folder.text("captions.jsonl"));
    std::fs::remove_file(folder.at("a.txt")).unwrap();
    let said = folder.ok(&[".", "--sidecar", "txt"]);
    assert!(
        said.contains("0 ok, 2 skipped") && said.contains("sidecars written from captions that were known: 1"),
        "{said}"
    );
    assert_eq!((folder.contents("txt"), folder.text("captions.jsonl")), before);
    // Another kind too.
    folder.ok(&[".", "--sidecar", "json"]);
    for name in ["a.json", "b.json"] {
        assert!(before.1.contains(&folder.text(name)), "{name}");
    }
}

/// A caption that somebody has worked on is not lost when its picture changes.
#[test]
fn changed_pictures_keep_edited_captions() {
    let folder = Folder::new(&["a.png", "b.png"]);
    folder.ok(&[".", "--sidecar", "txt"]);
    let before = folder.contents("txt");
    folder.write("a.txt", "edited\n");
    folder.write("a.png", crate::folder::picture(50));
    folder.write("b.png", crate::folder::picture(51));
    let said = folder.ok(&[".", "--sidecar", "txt"]);
    assert!(said.contains("1 ok, 1 skipped"), "{said}");
    assert_eq!(folder.text("a.txt"), "edited\n");
    assert_ne!(folder.text("b.txt"), before["b.txt"]);
}
