//! A folder of small pictures, and what a run leaves there.
//!
//! In: nothing. Out: a temporary folder, runs in it, its files. Not here: what is expected of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli_support::{Output, engine, finish, model};

/// A temporary folder that runs have as their own.
pub struct Folder {
    dir: TempDir,
}

/// A picture of its own for each number.
pub fn picture(number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 8, 8);
    encoder.set_color(png::ColorType::Rgb);
    let pixel = |i: u32| ((number + 1).wrapping_mul(2_654_435_761).rotate_left(i % 29).wrapping_add(i * 37)) as u8;
    let pixels: Vec<u8> = (0..192).map(pixel).collect();
    encoder.write_header().expect("a header").write_image_data(&pixels).expect("pixels");
    bytes
}

impl Folder {
    /// With these pictures in it, each its own.
    pub fn new(names: &[&str]) -> Folder {
        let folder = Folder { dir: tempfile::tempdir().expect("a folder") };
        for (name, number) in names.iter().zip(0..) {
            folder.write(name, picture(number));
        }
        folder
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }

    /// `engine caption --model TINY -n 3 ARGS` in the folder, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = engine();
        c.current_dir(self.path()).args(["caption", "--model", &model(), "-n", "3"]).args(args);
        c
    }

    pub fn caption(&self, args: &[&str]) -> Output {
        finish(self.command(args), b"")
    }

    /// A run that must end well; what it said.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.caption(args);
        assert_eq!(out.code, Some(0), "{out:?}");
        out.stderr
    }

    pub fn text(&self, name: impl AsRef<Path>) -> String {
        String::from_utf8(std::fs::read(self.at(&name)).unwrap_or_else(|e| panic!("{}: {e}", name.as_ref().display())))
            .expect("UTF-8")
    }

    /// The objects of a file of JSON lines.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let text = self.text(name);
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l:?}"))).collect()
    }

    /// The lines of a caption file by path, each path once, without the time they took.
    #[track_caller]
    pub fn captions(&self, name: &str) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for mut line in self.lines(name) {
            line.as_object_mut().expect("an object").remove("seconds").expect("seconds");
            let path = line["path"].as_str().expect("a path").to_string();
            assert!(all.insert(path.clone(), line).is_none(), "{path} is there twice");
        }
        all
    }

    /// The caption of a file in captions.jsonl.
    #[track_caller]
    pub fn caption_of(&self, path: &str) -> String {
        self.captions("captions.jsonl")[path]["caption"].as_str().expect("a caption").to_string()
    }

    /// Names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Content of all files with this extension.
    pub fn contents(&self, extension: &str) -> BTreeMap<String, String> {
        let wanted = |n: &String| Path::new(n).extension().is_some_and(|e| e == extension);
        self.names().into_iter().filter(wanted).map(|n| (n.clone(), self.text(&n))).collect()
    }
}
