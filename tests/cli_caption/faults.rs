//! Disks that are full, places that cannot be written, files that are not what they were.

use crate::cli_support::finish;
use crate::folder::{Folder, picture};

/// A shell's `ulimit -f` on the size of files is a full disk to whoever writes: a part of the line is written, the rest is
/// not.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_the_run_and_loses_nothing() {
    let names: Vec<String> = (0..120).map(|i| format!("{i:03}.png")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (whole, folder) = (Folder::new(&names), Folder::new(&names));
    let args = [".", "--sidecar", "txt", "--max-num-seqs", "2"];
    whole.ok(&args);
    let inner = folder.command(&args);
    let mut shell = std::process::Command::new("bash");
    // In blocks of 1024 bytes; the binary's own files are larger, and only read.
    shell.arg("-c").arg("ulimit -f 16 && exec \"$0\" \"$@\"").arg(inner.get_program()).args(inner.get_args());
    shell.current_dir(folder.path()).env_clear().env("ENGINE_THREADS", "2").env("PATH", "/usr/bin:/bin");
    let out = finish(shell, b"");
    out.refused(7, &["captions.jsonl", "make room and run the same command again"]);
    let done = folder.captions("captions.jsonl").len();
    assert!((10..120).contains(&done), "{done}");
    folder.ok(&args);
    assert_eq!(folder.captions("captions.jsonl"), whole.captions("captions.jsonl"));
    assert_eq!((folder.names(), folder.contents("txt")), (whole.names(), whole.contents("txt")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_that_is_full() {
    let folder = Folder::new(&["a.png", "b.png"]);
    folder.caption(&[".", "--out", "/dev/full"]).refused(7, &["/dev/full", "make room"]);
    assert_eq!(folder.names(), ["a.png", "b.png"]);
}

#[test]
fn places_that_cannot_be_written() {
    let folder = Folder::new(&["a.png"]);
    folder.caption(&[".", "--out", "no/such/folder/x.jsonl"]).refused(7, &["no/such/folder/x.jsonl"]);
    std::fs::create_dir(folder.at("taken.jsonl")).unwrap();
    folder.caption(&[".", "--out", "taken.jsonl"]).refused(7, &["taken.jsonl"]);
    // /proc takes no files, whoever asks: root too.
    if cfg!(target_os = "linux") {
        folder
            .caption(&[".", "--out", "/proc/x.jsonl"])
            .refused(7, &["/proc/x.jsonl", "expected a place that can be written"]);
    }
    // A folder where a sidecar should be.
    std::fs::create_dir(folder.at("a.txt")).unwrap();
    let out = folder.caption(&["a.png", "--sidecar", "txt"]);
    assert!(out.code == Some(3) && out.stderr.contains("name is taken by something that is no file"), "{out:?}");
    assert_eq!(folder.text("captions.jsonl"), "");
}

/// A folder that nothing can be written to. Root is asked by no mode, so the test looks whether this one holds.
#[cfg(unix)]
#[test]
fn a_folder_that_is_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new(&["in/a.png", "in/b.png"]);
    let mode = |m| std::fs::set_permissions(folder.at("in"), std::fs::Permissions::from_mode(m)).unwrap();
    mode(0o555);
    let holds = std::fs::write(folder.at("in/probe"), b"").is_err();
    let out = folder.caption(&["in", "--sidecar", "txt"]);
    mode(0o755);
    if holds {
        out.refused(7, &["in/", "Permission denied", "--sidecar"]);
        assert_eq!(folder.text("captions.jsonl"), "");
        folder.ok(&["in", "--sidecar", "txt"]);
    } else {
        assert_eq!(out.code, Some(0), "{out:?}");
    }
    assert_eq!(folder.captions("captions.jsonl").len(), 2);
}

#[cfg(unix)]
#[test]
fn files_that_are_none() {
    let folder = Folder::new(&["a.png"]);
    std::os::unix::fs::symlink("nowhere", folder.at("gone.png")).unwrap();
    std::os::unix::fs::symlink("a.png", folder.at("link.png")).unwrap();
    std::fs::create_dir(folder.at("folder.png")).unwrap();
    std::os::unix::fs::symlink("..", folder.at("folder.png/loop")).unwrap();
    // A pipe that nobody writes to must not be waited for.
    let made = std::process::Command::new("mkfifo").arg(folder.at("pipe.png")).status().unwrap();
    assert!(made.success());
    let out = folder.caption(&[".", "--recursive"]);
    assert_eq!(out.code, Some(3), "{out:?}");
    for said in [
        "failed: gone.png: no such file",
        "failed: pipe.png: not a regular file",
        "folder.png/loop: not entered, the link leads back",
        "4 files in ",
        "2 ok, 0 skipped, 2 failed",
    ] {
        assert!(out.stderr.contains(said), "{said}: {}", out.stderr);
    }
    assert_eq!(folder.caption_of("a.png"), folder.caption_of("link.png"));
    // Files named one by one are looked at whatever they are called.
    folder.write("no-extension", picture(0));
    let out = folder.caption(&["no-extension", "folder.png", "a.png", "a.png", "gone", "--out", "two.jsonl"]);
    assert!(out.stderr.contains("failed: gone: no such file"), "{out:?}");
    assert!(out.stderr.contains("files named twice: 1") && folder.captions("two.jsonl").len() == 2, "{out:?}");
}

/// Pictures that vanish while the run is on.
#[test]
fn files_that_vanish() {
    let names: Vec<String> = (0..100).map(|i| format!("{i:03}.png")).collect();
    let folder = Folder::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child = folder.command(&[".", "--max-num-seqs", "1", "-n", "30", "--ignore-eos"]);
    let child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while std::fs::metadata(folder.at("captions.jsonl")).map_or(0, |m| m.len()) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for name in &names[60..] {
        std::fs::remove_file(folder.at(name)).unwrap();
    }
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    let (done, failed) = (folder.captions("captions.jsonl").len(), folder.lines("failed.jsonl").len());
    assert_eq!((out.status.code(), done + failed), (Some(3), 100), "{said}");
    assert!(done >= 60 && failed > 0, "{done} {failed}");
}
