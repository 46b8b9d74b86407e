//! A run that is killed, or stopped, and goes on: nothing twice, nothing lost.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::folder::Folder;

fn many(pictures: usize) -> Folder {
    let names: Vec<String> = (0..pictures).map(|i| format!("in/{i:03}.png")).collect();
    Folder::new(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The next number of a seed (SplitMix64).
fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % below
}

fn num_lines(file: &Path) -> u64 {
    let bytes = std::fs::read(file).unwrap_or_default();
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

/// Waits until `done` says so, or the child has ended, or a minute is over.
fn wait_for(child: &mut Child, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() && child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Names and contents below `in`.
fn files(folder: &Folder) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder.at("in")).unwrap().map(|e| e.unwrap());
    let mut all: Vec<_> =
        entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect();
    all.sort();
    all
}

/// Kills runs with SIGKILL at random moments, then lets one end: the result is that of an unbroken run. `before` puts what
/// is there before the first run.
fn killed_is_unbroken(pictures: usize, kills: usize, mut seed: u64, args: &[&str], before: impl Fn(&Folder)) {
    let (unbroken, broken) = (many(pictures), many(pictures));
    before(&unbroken);
    before(&broken);
    unbroken.ok(args);
    let ledger = broken.at("captions.jsonl.ledger");
    // Few enough captions a run that the kills come before the end.
    let most = (pictures / kills / 2) as u64;
    for kill in 0..kills {
        let mut child = broken.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if kill % 5 == 4 {
            // Any time at all, while the model is loaded too.
            std::thread::sleep(Duration::from_micros(random(&mut seed, 30_000)));
        } else {
            let until = num_lines(&ledger) + random(&mut seed, most);
            wait_for(&mut child, || num_lines(&ledger) > until);
            std::thread::sleep(Duration::from_micros(random(&mut seed, 2_000)));
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "kill {kill} came too late");
    }
    let done = num_lines(&broken.at("captions.jsonl"));
    broken.ok(args);
    assert!(done > 0 && done < 2 * pictures as u64, "{done} lines before the last run");
    let captions = broken.captions("captions.jsonl");
    assert_eq!(captions, unbroken.captions("captions.jsonl"));
    assert_eq!(captions.len(), pictures);
    assert_eq!(files(&broken), files(&unbroken));
    assert_eq!(broken.names(), unbroken.names());
}

#[test]
fn killed_twenty_times() {
    killed_is_unbroken(300, 20, 1, &["in", "--sidecar", "txt", "--max-num-seqs", "4"], |_| {});
}

/// Joining an existing caption twice would show.
#[test]
fn killed_while_captions_are_joined() {
    let args = ["in", "--sidecar", "txt", "--existing", "append", "--max-num-seqs", "4"];
    killed_is_unbroken(60, 8, 2, &args, |folder| {
        (0..60).for_each(|i| folder.write(format!("in/{i:03}.txt"), format!("old caption {i}\n")));
    });
}

/// Replaced lines are gone at the end, and what a run has replaced it does not replace again.
#[test]
fn killed_while_lines_are_replaced() {
    killed_is_unbroken(60, 8, 3, &["in", "--existing", "overwrite", "--max-num-seqs", "4"], |folder| {
        let line = |i: usize| format!("{{\"path\":\"in/{i:03}.png\",\"caption\":\"old\"}}\n");
        folder.write("captions.jsonl", (0..60).map(line).collect::<String>());
    });
}

/// What a kill in the middle of a write can leave, made by hand.
#[test]
fn cut_lines_and_missing_steps_are_mended() {
    let args = ["in", "--sidecar", "txt"];
    let whole = many(6);
    whole.ok(&args);
    let expected = whole.captions("captions.jsonl");
    let copy = |change: &dyn Fn(&Folder)| {
        let folder = many(6);
        folder.ok(&args);
        change(&folder);
        folder.ok(&args);
        assert_eq!(folder.captions("captions.jsonl"), expected);
        assert_eq!(files(&folder), files(&whole));
    };
    let cut = |folder: &Folder, name: &str, lines: usize, bytes: usize| {
        let text = folder.text(name);
        let kept: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
        folder.write(name, &text[..kept + bytes]);
    };
    // The ledger: a line that begins the run, then one a picture. In the order of the lines:
    let forget = |folder: &Folder, from: usize| {
        for line in &folder.lines("captions.jsonl")[from..] {
            let sidecar = Path::new(line["path"].as_str().unwrap()).with_extension("txt");
            std::fs::remove_file(folder.at(sidecar)).unwrap();
        }
    };
    let ledger = "captions.jsonl.ledger";
    for bytes in [0, 1, 40] {
        // A line of the caption file that was cut or not begun, with its sidecar there and not yet there.
        for sidecars in [3, 4] {
            copy(&|f| {
                forget(f, sidecars);
                cut(f, "captions.jsonl", 3, bytes);
                cut(f, ledger, 5, 0);
            });
        }
        // An entry of the ledger that was cut.
        copy(&|f| {
            forget(f, 4);
            cut(f, "captions.jsonl", 4, 0);
            cut(f, ledger, 5, bytes);
        });
    }
    // A whole line that only lacks its end is kept.
    copy(&|f| {
        let text = f.text("captions.jsonl");
        f.write("captions.jsonl", text.trim_end());
        cut(f, ledger, 7, 0);
    });
    // The ledger gone: the caption file alone says what is done.
    copy(&|f| std::fs::remove_file(f.at(ledger)).unwrap());
}

#[test]
fn nothing_is_done_twice() {
    let folder = many(5);
    folder.ok(&["in", "--sidecar", "json"]);
    let before = (folder.text("captions.jsonl"), files(&folder));
    let said = folder.ok(&["in", "--sidecar", "json"]);
    assert!(said.contains("0 ok, 5 skipped, 0 failed") && said.contains("skipped, captioned before: 5"), "{said}");
    assert_eq!((folder.text("captions.jsonl"), files(&folder)), before);
    // A new time of change is no new picture; new content is.
    let touched = std::fs::File::options().append(true).open(folder.at("in/001.png")).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    folder.write("in/003.png", crate::folder::picture(77));
    let said = folder.ok(&["in", "--sidecar", "json"]);
    assert!(said.contains("1 ok, 4 skipped, 0 failed"), "{said}");
    assert_eq!(folder.captions("captions.jsonl").len(), 5);
    assert_ne!((folder.text("captions.jsonl"), files(&folder)), before);
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[cfg(unix)]
#[test]
fn signals_leave_a_state_that_goes_on() {
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let (whole, folder) = (many(200), many(200));
        let args = ["in", "--sidecar", "txt", "--max-num-seqs", "2"];
        whole.ok(&args);
        let mut child = folder.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let ledger = folder.at("captions.jsonl.ledger");
        wait_for(&mut child, || num_lines(&ledger) > 5);
        signal(&child, name);
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{said}");
        let done = folder.captions("captions.jsonl").len();
        assert!((5..200).contains(&done) && said.contains("stopping: "), "{done} {said}");
        // Everything that was written is whole: as many sidecars as lines, and no file on its way.
        assert_eq!(files(&folder).len(), 200 + done);
        folder.ok(&args);
        assert_eq!(folder.captions("captions.jsonl"), whole.captions("captions.jsonl"));
        assert_eq!(files(&folder), files(&whole));
    }
}

#[cfg(unix)]
#[test]
fn the_second_signal_ends_at_once() {
    let folder = many(50);
    // Answers that take long, and one seat.
    let args = ["in", "--max-num-seqs", "1", "-n", "400", "--ignore-eos"];
    let mut child = folder.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let ledger = folder.at("captions.jsonl.ledger");
    wait_for(&mut child, || num_lines(&ledger) > 0);
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "-INT");
    std::thread::sleep(Duration::from_millis(20));
    signal(&child, "-INT");
    let start = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(2));
    folder.ok(&["in"]);
    assert_eq!(folder.captions("captions.jsonl").len(), 50);
}

#[test]
fn two_runs_at_once_are_refused() {
    let folder = many(40);
    let args = ["in", "--max-num-seqs", "1", "-n", "300", "--ignore-eos"];
    let mut child = folder.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let ledger = folder.at("captions.jsonl.ledger");
    wait_for(&mut child, || num_lines(&ledger) > 0);
    folder.caption(&["in"]).refused(7, &["captions.jsonl: another run is writing it", "--out"]);
    child.kill().unwrap();
    child.wait().unwrap();
    folder.ok(&["in"]);
}
