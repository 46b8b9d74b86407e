//! `checkpoint::hub` against a server that plays the hub, and against a cache written by hand as Python writes it.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::checkpoint::hub::{HubOptions, Progress, resolve};
use sha2::{Digest, Sha256};
use support::{Reply, Request, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "org/tiny-vlm";

/// Files by name. Those that end with .safetensors lie on a second server, as large files do.
type Files = BTreeMap<String, Vec<u8>>;

fn sharded() -> Files {
    let index = r#"{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    [
        ("config.json", &b"{\"model_type\": \"x\"}"[..]),
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b"{{ messages }}"),
        ("README.md", b"# not wanted"),
        ("onnx/config.json", b"not wanted"),
        ("pytorch_model.bin", b"not wanted"),
        ("model.safetensors.index.json", index.as_bytes()),
        ("model-1.safetensors", &[1; 5000]),
        ("model-2.safetensors", &[2; 3000]),
    ]
    .into_iter()
    .map(|(n, b)| (n.to_string(), b.to_vec()))
    .collect()
}

fn single() -> Files {
    let weights: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
    [("config.json", b"{}".to_vec()), ("model.safetensors", weights)].map(|(n, b)| (n.to_string(), b)).into()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Git's id of small files is a sha1; any forty digits do for a test.
fn etag(name: &str, bytes: &[u8]) -> String {
    if name.ends_with(".safetensors") { sha256(bytes) } else { sha256(bytes)[..40].to_string() }
}

/// A hub and the store that it redirects to.
struct Hub {
    hub: Server,
    store: Server,
    cache: tempfile::TempDir,
}

type Twist = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

impl Hub {
    fn start(files: Files) -> Hub {
        Hub::twisted(files, |_| None, |_, reply| Some(reply))
    }

    /// `first` may answer instead of the hub; `store` may change what the store answers.
    fn twisted(
        files: Files,
        first: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
        store: impl Fn(&Request, Reply) -> Option<Reply> + Send + Sync + 'static,
    ) -> Hub {
        let stored = files.clone();
        let store = Server::start(move |request| match stored.get(request.target.trim_start_matches("/store/")) {
            Some(body) => store(request, Reply::file(request, body)),
            None => Some(Reply::new(404, "")),
        });
        let store_url = store.url();
        let first: Arc<Twist> = Arc::new(first);
        let hub = Server::start(move |request| first(request).or_else(|| Some(answer(&files, &store_url, request))));
        Hub { hub, store, cache: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> HubOptions {
        options(&self.hub.url(), self.cache.path())
    }

    fn resolve(&self) -> engine::Result<PathBuf> {
        resolve(REPO, &[], &self.options(), &|_| {})
    }

    fn repo_dir(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny-vlm")
    }
}

fn options(endpoint: &str, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: endpoint.to_string(),
        cache_dir: cache.to_path_buf(),
        retry_delay: Duration::from_millis(1),
        ..HubOptions::from_vars(&|_| None)
    }
}

/// What the hub answers.
fn answer(files: &Files, store: &str, request: &Request) -> Reply {
    let revisions = ["main", "refs%2Fpr%2F1", COMMIT];
    if let Some(revision) = request.target.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
        if !revisions.contains(&revision) {
            return Reply::new(404, "").with("X-Error-Code", "RevisionNotFound");
        }
        let siblings: Vec<_> = files.keys().map(|f| serde_json::json!({ "rfilename": f })).collect();
        let body = serde_json::json!({ "id": REPO, "sha": COMMIT, "siblings": siblings }).to_string();
        return Reply::new(200, body).with("Content-Type", "application/json");
    }
    let Some(rest) = request.target.strip_prefix(&format!("/{REPO}/resolve/")) else {
        return Reply::new(404, "").with("X-Error-Code", "RepoNotFound");
    };
    let (revision, name) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(body) = files.get(name).filter(|_| revisions.contains(&revision)) else {
        return Reply::new(404, "").with("X-Error-Code", "EntryNotFound");
    };
    let tag = format!("\"{}\"", etag(name, body));
    if name.ends_with(".safetensors") {
        return Reply::new(302, "")
            .with("Location", format!("{store}/store/{name}"))
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Etag", tag)
            .with("X-Linked-Size", body.len());
    }
    Reply::file(request, body).with("ETag", format!("W/{tag}")).with("X-Repo-Commit", COMMIT)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_downloaded_into_pythons_layout() {
    let files = sharded();
    let hub = Hub::start(files.clone());
    let seen = Mutex::new(BTreeMap::new());
    let options = HubOptions { token: Some("hf_secret".into()), ..hub.options() };
    let on_progress = |p: Progress<'_>| {
        seen.lock().unwrap().insert(p.file.to_string(), (p.done_bytes, p.total_bytes));
    };
    let dir = resolve("tiny", &[("tiny", REPO)], &options, &on_progress).unwrap();
    assert_eq!(dir, hub.repo_dir().join("snapshots").join(COMMIT));
    let wanted = [
        "chat_template.jinja",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names(&dir), wanted);
    for name in wanted {
        let tag = etag(name, &files[name]);
        assert_eq!(std::fs::read(dir.join(name)).unwrap(), files[name], "{name}");
        assert_eq!(std::fs::read_link(dir.join(name)).unwrap(), Path::new("../../blobs").join(&tag), "{name}");
        assert!(hub.repo_dir().join("blobs").join(&tag).is_file(), "{name}");
        assert_eq!(seen.lock().unwrap()[name], (files[name].len() as u64, Some(files[name].len() as u64)), "{name}");
    }
    assert_eq!(names(&hub.repo_dir().join("blobs")).len(), wanted.len());
    assert_eq!(std::fs::read_to_string(hub.repo_dir().join("refs/main")).unwrap(), COMMIT);

    // The token goes to the hub and not to the store.
    let (to_hub, to_store) = (hub.hub.take_requests(), hub.store.take_requests());
    assert!(to_hub.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
    assert_eq!(to_store.len(), 2);
    assert!(to_store.iter().all(|r| r.header("authorization").is_none()));

    // The second time only the revision is looked up.
    assert_eq!(hub.resolve().unwrap(), dir);
    assert_eq!(hub.hub.take_requests().len(), 1);
    assert!(hub.store.take_requests().is_empty());
}

#[test]
fn a_local_directory_needs_no_network() {
    let hub = Hub::start(single());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve(path, &[], &hub.options(), &|_| {}).unwrap(), dir.path());
    assert!(hub.hub.take_requests().is_empty());
}

#[test]
fn a_revision_is_kept_under_its_own_name() {
    let hub = Hub::start(single());
    let dir = resolve(&format!("{REPO}@refs/pr/1"), &[], &hub.options(), &|_| {}).unwrap();
    assert_eq!(std::fs::read_to_string(hub.repo_dir().join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert!(!hub.repo_dir().join("refs/main").exists());
    // A commit needs no reference and is found offline.
    let offline = HubOptions { offline: true, revision: Some(COMMIT.into()), ..hub.options() };
    assert_eq!(resolve(REPO, &[], &offline, &|_| {}).unwrap(), dir);
    let got = resolve(&format!("{REPO}@nope"), &[], &hub.options(), &|_| {}).unwrap_err();
    assert_eq!(got.exit_code(), 4);
    assert!(got.to_string().contains("no revision \"nope\""), "{got}");
}

#[test]
fn a_cut_download_goes_on_where_it_ended() {
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = cuts.clone();
    let hub = Hub::twisted(
        single(),
        |_| None,
        move |_, reply| {
            // The first two answers break off after 30,000 bytes.
            let cut_after = (counted.fetch_add(1, Ordering::SeqCst) < 2).then_some(30_000);
            Some(Reply { cut_after, ..reply })
        },
    );
    let dir = hub.resolve().unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), single()["model.safetensors"]);
    let ranges: Vec<_> = hub.store.take_requests().iter().map(|r| r.header("range").map(str::to_string)).collect();
    assert_eq!(ranges, [None, Some("bytes=30000-".into()), Some("bytes=60000-".into())]);
}

#[test]
fn a_download_is_taken_up_again_by_the_next_run() {
    let broken = Arc::new(AtomicUsize::new(1));
    let counted = broken.clone();
    let hub = Hub::twisted(
        single(),
        |_| None,
        move |request, reply| match counted.load(Ordering::SeqCst) {
            1 if request.header("range").is_some() => None,
            1 => Some(Reply { cut_after: Some(40_000), ..reply }),
            _ => Some(reply),
        },
    );
    let options = HubOptions { retries: 1, ..hub.options() };
    let got = resolve(REPO, &[], &options, &|_| {}).unwrap_err();
    assert!(got.to_string().contains("cannot be reached"), "{got}");
    let blobs = hub.repo_dir().join("blobs");
    let partial: Vec<String> = names(&blobs).into_iter().filter(|n| n.ends_with(".incomplete")).collect();
    assert_eq!(partial, [format!("{}.incomplete", sha256(&single()["model.safetensors"]))]);
    assert_eq!(std::fs::metadata(blobs.join(&partial[0])).unwrap().len(), 40_000);
    let offline = HubOptions { offline: true, ..hub.options() };
    assert!(resolve(REPO, &[], &offline, &|_| {}).is_err(), "half a model is none");

    broken.store(0, Ordering::SeqCst);
    hub.store.take_requests();
    let dir = hub.resolve().unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), single()["model.safetensors"]);
    assert_eq!(hub.store.take_requests()[0].header("range"), Some("bytes=40000-"));
}

#[test]
fn a_server_without_ranges_and_a_partial_file_that_is_too_long_begin_anew() {
    let full = single()["model.safetensors"].clone();
    for (partial, ranges) in [(500, false), (full.len() + 10, true)] {
        let body = full.clone();
        let hub = Hub::twisted(
            single(),
            |_| None,
            move |_, reply| Some(if ranges { reply } else { Reply::new(200, body.clone()) }),
        );
        let blobs = hub.repo_dir().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", sha256(&full))), vec![9; partial]).unwrap();
        match hub.resolve() {
            Ok(dir) => assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), full),
            // Longer than the file: refused once by its length, and gone.
            Err(e) => {
                assert!(partial > full.len() && e.to_string().contains("expected 100000 bytes"), "{e}");
                assert_eq!(std::fs::read(hub.resolve().unwrap().join("model.safetensors")).unwrap(), full);
            }
        }
    }
}

#[test]
fn damaged_bytes_are_refused_and_not_kept() {
    let bad = Arc::new(AtomicUsize::new(1));
    let switch = bad.clone();
    let hub = Hub::twisted(
        single(),
        |_| None,
        move |_, mut reply| {
            reply.body[77] ^= switch.load(Ordering::SeqCst) as u8;
            Some(reply)
        },
    );
    let got = hub.resolve().unwrap_err();
    assert_eq!(got.exit_code(), 4);
    assert!(got.to_string().contains("model.safetensors: expected sha256"), "{got}");
    assert!(names(&hub.repo_dir().join("blobs")).iter().all(|n| n.len() == 40), "the damaged blob is gone");
    bad.store(0, Ordering::SeqCst);
    assert!(hub.resolve().is_ok());
}

#[test]
fn refusals_say_what_to_do() {
    let cases: &[(u16, Option<&str>, Option<&str>, &str)] = &[
        (401, Some("RepoNotFound"), None, "or private or gated (401); check the name, or ask for access at"),
        (401, None, Some("hf_old"), "does not accept the token (401); renew HF_TOKEN"),
        (403, Some("GatedRepo"), Some("hf_x"), "access refused (403); ask for it at"),
        (404, Some("RepoNotFound"), None, "no such model or revision (main)"),
        (429, None, None, "wants fewer requests (429)"),
        (503, None, None, "out of order (503); try again later"),
    ];
    for &(status, code, token, want) in cases {
        let hub = Hub::twisted(
            single(),
            move |_| {
                let reply = Reply::new(status, "");
                Some(match code {
                    Some(code) => reply.with("X-Error-Code", code),
                    None => reply,
                })
            },
            |_, reply| Some(reply),
        );
        let options = HubOptions { token: token.map(str::to_string), ..hub.options() };
        let got = resolve(REPO, &[], &options, &|_| {}).unwrap_err();
        assert_eq!(got.exit_code(), 4, "{got}");
        let text = got.to_string();
        assert!(text.starts_with("checkpoint: org/tiny-vlm: ") && text.contains(want), "{status}: {text}");
        assert!(!text.contains('\n') && !text.contains("hf_"), "{text}");
    }
}

#[test]
fn offline_uses_the_cache_alone() {
    let hub = Hub::start(sharded());
    let offline = HubOptions { offline: true, ..hub.options() };
    let got = resolve(REPO, &[], &offline, &|_| {}).unwrap_err().to_string();
    assert!(got.contains("offline, and it is not in the cache") && got.contains("HF_HUB_OFFLINE"), "{got}");
    assert!(hub.hub.take_requests().is_empty());
    let dir = hub.resolve().unwrap();
    hub.hub.take_requests();
    assert_eq!(resolve(REPO, &[], &offline, &|_| {}).unwrap(), dir);
    assert!(hub.hub.take_requests().is_empty());
    std::fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    let got = resolve(REPO, &[], &offline, &|_| {}).unwrap_err().to_string();
    assert!(got.contains("model-2.safetensors is not in the cache"), "{got}");
}

#[test]
fn a_hub_that_is_down_is_no_matter_for_a_cached_model() {
    let hub = Hub::start(single());
    let dir = hub.resolve().unwrap();
    let gone = Server::start(|_| None);
    let options = HubOptions { retries: 0, ..options(&gone.url(), hub.cache.path()) };
    assert_eq!(resolve(REPO, &[], &options, &|_| {}).unwrap(), dir);
    let got = resolve("org/other", &[], &options, &|_| {}).unwrap_err();
    assert_eq!(got.exit_code(), 4);
    assert!(got.to_string().contains("cannot be reached") && got.to_string().contains("HF_ENDPOINT"), "{got}");
}

#[test]
fn a_web_page_is_no_model() {
    let page = || Reply::new(200, "<html>please log in</html>").with("Content-Type", "text/html; charset=utf-8");
    let everything = Hub::twisted(single(), move |_| Some(page()), |_, reply| Some(reply));
    let got = everything.resolve().unwrap_err().to_string();
    assert!(got.contains("got a web page for") && got.contains("HF_ENDPOINT"), "{got}");
    let weights = Hub::twisted(single(), |_| None, move |_, _| Some(page()));
    let got = weights.resolve().unwrap_err().to_string();
    assert!(got.contains("got a web page for"), "{got}");
    assert!(!weights.repo_dir().join("snapshots").join(COMMIT).join("model.safetensors").exists());
}

#[test]
fn a_mirror_that_only_serves_files_is_probed() {
    let mirror = Hub::twisted(
        sharded(),
        |request| request.target.starts_with("/api/").then(|| Reply::new(404, "no such page")),
        |_, reply| Some(reply),
    );
    let dir = mirror.resolve().unwrap();
    assert!(dir.join("model-2.safetensors").is_file() && dir.join("chat_template.jinja").is_file());
    assert_eq!(std::fs::read_to_string(mirror.repo_dir().join("refs/main")).unwrap(), COMMIT);
    let none = Hub::twisted(single(), |_| Some(Reply::new(200, "{}").with("ETag", "\"x\"")), |_, reply| Some(reply));
    let got = none.resolve().unwrap_err().to_string();
    assert!(got.contains("expected a list of files"), "{got}");
}

#[test]
fn a_cache_written_by_python_is_read() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--org--tiny-vlm");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for dir in ["blobs", "refs", ".no_exist"] {
        std::fs::create_dir_all(repo.join(dir)).unwrap();
    }
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (name, bytes) in single() {
        let tag = etag(&name, &bytes);
        std::fs::write(repo.join("blobs").join(&tag), &bytes).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("../../blobs/{tag}"), snapshot.join(&name)).unwrap();
        #[cfg(not(unix))]
        std::fs::write(snapshot.join(&name), &bytes).unwrap();
    }
    let offline = HubOptions { offline: true, ..options("http://127.0.0.1:9", cache.path()) };
    assert_eq!(resolve(REPO, &[], &offline, &|_| {}).unwrap(), snapshot);
    // Blobs that another snapshot brought are linked, not downloaded again.
    let hub = Hub::start(single());
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    let online = options(&hub.hub.url(), cache.path());
    assert_eq!(resolve(REPO, &[], &online, &|_| {}).unwrap(), snapshot);
    assert!(snapshot.join("model.safetensors").is_file() && hub.store.take_requests().is_empty());
}

#[test]
fn two_downloads_at_once_share_one() {
    let hub = Hub::start(sharded());
    let dirs: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.resolve().unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(dirs.iter().all(|d| d == &dirs[0]));
    for (name, bytes) in sharded() {
        if name.starts_with("model-") {
            assert_eq!(std::fs::read(dirs[0].join(name)).unwrap(), bytes);
        }
    }
    let mut asked: Vec<String> = hub.store.take_requests().into_iter().map(|r| r.target).collect();
    asked.sort();
    assert_eq!(asked, ["/store/model-1.safetensors", "/store/model-2.safetensors"], "each once");
    assert!(!names(&hub.repo_dir().join("blobs")).iter().any(|n| n.ends_with(".incomplete")));
}

#[test]
fn without_links_files_are_copied() {
    let hub = Hub::start(single());
    let options = HubOptions { symlinks: false, ..hub.options() };
    let dir = resolve(REPO, &[], &options, &|_| {}).unwrap();
    let weights = dir.join("model.safetensors");
    assert!(!std::fs::symlink_metadata(&weights).unwrap().file_type().is_symlink());
    assert_eq!(std::fs::read(weights).unwrap(), single()["model.safetensors"]);
}

#[test]
fn what_is_no_usable_model_is_refused_before_its_weights() {
    let mut old = single();
    old.remove("model.safetensors");
    old.insert("pytorch_model.bin".into(), vec![0; 100]);
    let got = Hub::start(old).resolve().unwrap_err().to_string();
    assert!(got.contains("got only pytorch_model.bin") && got.contains("refs/pr/1"), "{got}");

    let mut nothing = single();
    nothing.remove("model.safetensors");
    let got = Hub::start(nothing).resolve().unwrap_err().to_string();
    assert!(got.contains("got no weights"), "{got}");

    let mut evil = sharded();
    let index = br#"{"weight_map": {"a": "../../../../model-1.safetensors"}}"#;
    evil.insert("model.safetensors.index.json".into(), index.to_vec());
    evil.insert("../tokenizer.json".into(), b"outside".to_vec());
    let hub = Hub::start(evil);
    let got = hub.resolve().unwrap_err().to_string();
    assert!(got.contains("expected the name of a .safetensors file in the same directory"), "{got}");
    assert!(!hub.repo_dir().join("snapshots/tokenizer.json").exists());
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let hub = Hub::twisted(
        single(),
        |_| None,
        |_, reply| {
            std::thread::sleep(Duration::from_millis(1500));
            Some(reply)
        },
    );
    let patience = Duration::from_millis(200);
    let options = HubOptions { retries: 0, etag_timeout: patience, download_timeout: patience, ..hub.options() };
    let got = resolve(REPO, &[], &options, &|_| {}).unwrap_err().to_string();
    assert!(got.contains("cannot be reached") && got.contains("timeout"), "{got}");
}
