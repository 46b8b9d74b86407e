//! Names that are odd, and names that meet.

use std::path::PathBuf;

use base64::Engine as _;

use crate::folder::{Folder, picture};

#[test]
fn pictures_of_one_stem_have_sidecars_of_their_own() {
    let folder = Folder::new(&["a.jpg", "a.png", "a.png.jpg", "b.webp"]);
    let said = folder.ok(&[".", "--sidecar", "txt"]);
    let all = ["a.jpg", "a.png", "a.png.jpg", "b.webp"];
    let sidecars = ["a.txt", "a.png.txt", "a.png.jpg.txt", "b.txt"];
    for (name, sidecar) in all.iter().zip(sidecars) {
        let caption = folder.caption_of(name);
        assert_eq!(folder.text(sidecar).trim_end(), caption.split_whitespace().collect::<Vec<_>>().join(" "), "{name}");
    }
    assert!(said.contains("sidecars named in full (a.png.txt), as another picture has the short name: 2"), "{said}");
    // The same whichever of them are named, and however.
    let other = Folder::new(&["a.jpg", "a.png", "a.png.jpg", "b.webp"]);
    other.ok(&["a.png", "--sidecar", "txt"]);
    assert_eq!(other.contents("txt").into_keys().collect::<Vec<_>>(), ["a.png.txt"]);
    other.write("list", "a.png.jpg\na.jpg\n");
    other.ok(&["--filelist", "list", "--glob", "*.png", "--sidecar", "txt"]);
    other.ok(&[".", "--glob", "b.*", "--sidecar", "txt"]);
    assert_eq!(other.contents("txt"), folder.contents("txt"));
}

/// A picture that comes later and sorts before does not take a sidecar over.
#[test]
fn a_sidecar_stays_with_its_picture() {
    let folder = Folder::new(&["a.png"]);
    folder.ok(&[".", "--sidecar", "txt"]);
    let first = folder.text("a.txt");
    folder.write("a.jpg", picture(9));
    folder.ok(&[".", "--sidecar", "txt"]);
    assert_eq!(folder.text("a.txt"), first);
    assert_eq!(folder.names().iter().filter(|n| n.ends_with(".txt")).count(), 2);
    assert!(folder.at("a.jpg.txt").exists());
    // A sidecar never takes the place of what it belongs to.
    folder.write("c.txt", picture(10));
    folder.ok(&["c.txt", "--sidecar", "txt"]);
    assert_eq!(std::fs::read(folder.at("c.txt")).unwrap(), picture(10));
    assert!(folder.at("c.txt.txt").exists());
    // Nor that of a file of the run.
    folder.write("d.png", picture(11));
    folder.ok(&["d.png", "--sidecar", "json", "--out", "d.json"]);
    assert_eq!(folder.text("d.json"), folder.text("d.png.json"));
}

#[cfg(unix)]
#[test]
fn odd_names_come_back_from_json() {
    use std::os::unix::ffi::OsStringExt;
    let name = |bytes: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()));
    let odd = [
        name(b"-dash.png"),
        name(b"two\nlines.png"),
        name(b"red \x1b[31m.png"),
        name("e\u{301}.png".as_bytes()),
        name("\u{1f600} \u{202e}gnp.png".as_bytes()),
        name(b"latin1 \xe9.png"),
        name(b" {name}'\".png"),
        name(&[&b"n".repeat(251)[..], b".png"].concat()),
    ];
    let folder = Folder::new(&[]);
    for (name, number) in odd.iter().zip(0..) {
        folder.write(name, picture(number));
    }
    folder.write(name(b"bad\x1b[2J\xff.png"), b"no picture");
    let out = folder.caption(&[".", "--sidecar", "txt", "--json"]);
    assert_eq!(out.code, Some(3), "{out:?}");
    let plain = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control());
    assert!(plain(&out.stderr) && plain(&out.stdout), "{out:?}");
    assert!(out.stderr.contains("bad\\u{1b}[2J\u{fffd}.png"), "{}", out.stderr);

    let path = |line: &serde_json::Value| match line["path_bytes"].as_str() {
        Some(bytes) => name(&base64::engine::general_purpose::STANDARD.decode(bytes).unwrap()),
        None => PathBuf::from(line["path"].as_str().unwrap()),
    };
    let lines = folder.lines("captions.jsonl");
    let mut got: Vec<PathBuf> = lines.iter().map(path).collect();
    got.sort();
    let mut want = odd.to_vec();
    want.sort();
    assert_eq!(got, want);
    assert!(odd.iter().all(|n| folder.at(n.with_extension("txt")).exists()));
    assert_eq!(path(&folder.lines("failed.jsonl")[0]), name(b"bad\x1b[2J\xff.png"));

    // The caption file is a list of files too, and names all of them again.
    let other = folder.ok(&["--filelist", "captions.jsonl", "--out", "again.jsonl"]);
    assert!(other.contains("8 files in ") && other.contains("8 ok, 0 skipped, 0 failed"), "{other}");
}

#[test]
fn names_that_are_too_long_fail_before_the_model() {
    let long = format!("{}.png", "n".repeat(251));
    let folder = Folder::new(&[&long, "a.png"]);
    let out = folder.caption(&[".", "--sidecar", "caption"]);
    assert_eq!(out.code, Some(3));
    assert!(out.stderr.contains("longer than 255 bytes"), "{}", out.stderr);
    assert!(folder.at("a.caption").exists());
}

#[test]
fn prompts_say_what_a_file_is_called() {
    // With a seed of its own a random model says something else to every prompt.
    let run = |prompt: &str, files: &[&str]| {
        let folder = Folder::new(&[]);
        files.iter().for_each(|f| folder.write(f, picture(1)));
        folder.ok(&["cats", "--prompt", prompt, "-n", "12", "--ignore-eos"]);
        files.iter().map(|f| folder.caption_of(f)).collect::<Vec<_>>()
    };
    let names = run("This is {stem} in {directory}: {name}", &["cats/tom.png", "cats/zoe.png"]);
    assert_ne!(names[0], names[1]);
    let plain = run("This is tom in cats: tom.png", &["cats/tom.png", "cats/zoe.png"]);
    assert_eq!((plain[0] == plain[1], &plain[0]), (true, &names[0]));
    Folder::new(&["a.png"]).caption(&[".", "--prompt", "{who}"]).refused(2, &["{who}: expected {name}, {stem}"]);
}
