//! A model's name turned into a directory: local, cached, or downloaded.
//!
//! In: what `--model` says, options and environment. Out: a directory with configuration, tokenizer and weights.
//! Owns: which files are wanted, in which order things are tried. Not here: the cache's layout (`cache.rs`),
//! HTTP (`client.rs`), reading the files (`checkpoint`).
//!
//! The cache is huggingface_hub's, so that both programs share downloads.

mod cache;
mod client;
mod env;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use self::cache::Repo;
use self::client::{Client, Failure};
pub use self::env::HubOptions;
use super::built_in;
use crate::{Error, Result};

/// How far a file is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub file: &'a str,
    /// Bytes in the cache so far, those of an earlier attempt included.
    pub done_bytes: u64,
    /// Where the server has said so.
    pub total_bytes: Option<u64>,
}

/// What to tell of a running download; called from several threads.
pub type OnProgress<'a> = &'a (dyn Fn(Progress<'_>) + Sync);

/// A model on a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HubId {
    /// `org/name`.
    repo: String,
    revision: String,
}

/// The directory of a model.
///
/// `model` is the built-in model's name or nothing at all (its stand-in is returned), an existing directory (returned as it is, without any network), an alias of `aliases`
/// (name, hub id), or `org/name[@revision]`. A download that was cut goes on where it ended; a model whose files
/// are all in the cache is found there when the hub cannot be reached.
///
/// Errors: [`Error::Request`] for a revision that cannot be one, [`Error::Checkpoint`] for a name that is none of
/// these and for everything that goes wrong with cache or hub; both with the next step.
pub fn resolve(
    model: &str,
    aliases: &[(&str, &str)],
    options: &HubOptions,
    on_progress: OnProgress<'_>,
) -> Result<PathBuf> {
    if model.is_empty() || model == built_in::NAME || Path::new(model) == Path::new(built_in::DIRECTORY) {
        built_in::check()?;
        return Ok(PathBuf::from(built_in::DIRECTORY));
    }
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.is_file() {
        return Err(Error::Checkpoint(format!(
            "model: {model} is a file; expected a checkpoint's directory or a hub id"
        )));
    }
    let target = aliases.iter().find(|(alias, _)| *alias == model).map_or(model, |(_, id)| *id);
    let Some(id) = parse_id(target, options)? else {
        let names: Vec<&str> = aliases.iter().map(|(alias, _)| *alias).collect();
        return Err(Error::Checkpoint(format!(
            "model: {model:?}: expected an existing directory, a hub id (org/name[@revision]) or an alias ({})",
            names.join(", ")
        )));
    };
    let repo = Repo::new(&options.cache_dir, &id.repo, options.symlinks);
    let cached = || -> std::result::Result<PathBuf, String> {
        let commit = repo.commit_of(&id.revision).ok_or("it is not in the cache")?;
        let snapshot = repo.snapshot(&commit);
        match missing_file(&snapshot) {
            None => Ok(snapshot),
            Some(file) => Err(format!("{file} is not in the cache")),
        }
    };
    if options.offline {
        return cached().map_err(|why| {
            Error::Checkpoint(format!(
                "{}@{}: offline, and {why} ({}); run once without --offline and HF_HUB_OFFLINE",
                id.repo,
                id.revision,
                options.cache_dir.display()
            ))
        });
    }
    match download(&id, &repo, options, on_progress) {
        Ok(snapshot) => Ok(snapshot),
        // As huggingface_hub: what is complete in the cache works without the hub, whatever ails that.
        Err(failure) if failure.before_download => match cached() {
            Ok(snapshot) => {
                tracing::warn!("{}; using the cached copy in {}", failure.error, snapshot.display());
                Ok(snapshot)
            }
            Err(_) => Err(failure.error),
        },
        Err(failure) => Err(failure.error),
    }
}

/// Reads `org/name[@revision]`, a page's address included; `None` where it is no hub id.
fn parse_id(text: &str, options: &HubOptions) -> Result<Option<HubId>> {
    let endpoint = format!("{}/", options.endpoint);
    let prefixes = [endpoint.as_str(), "https://huggingface.co/", "https://hf.co/", "hf://"];
    let text = prefixes.iter().find_map(|p| text.strip_prefix(p)).unwrap_or(text);
    let (repo, own) = match text.split_once("/tree/").or_else(|| text.split_once('@')) {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (text, None),
    };
    let part = |s: &str| {
        !s.is_empty()
            && s.len() <= 96
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !s.starts_with(['-', '.'])
            && !s.ends_with(['-', '.'])
            && !s.contains("--")
            && !s.contains("..")
    };
    match repo.split_once('/') {
        Some((org, name)) if part(org) && part(name) => {}
        _ => return Ok(None),
    }
    let revision = match (own, options.revision.as_deref()) {
        (Some(own), Some(flag)) if own != flag => {
            return Err(Error::Request(format!("model: {text} names a revision and --revision another ({flag})")));
        }
        (Some(r), _) | (None, Some(r)) => r,
        (None, None) => "main",
    };
    let sane = |s: &str| {
        !s.is_empty() && s != "." && s != ".." && s.chars().all(|c| !c.is_control() && !"\\:?*\"<>|".contains(c))
    };
    if revision.len() > 200 || !revision.split('/').all(sane) {
        return Err(Error::Request(format!("revision: expected a branch, a tag or a commit, got {revision:?}")));
    }
    Ok(Some(HubId { repo: repo.to_string(), revision: revision.to_string() }))
}

/// Files read beside the weights. Those of which a checkpoint may have none are no error where they lack.
const SETTINGS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
];

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether a file of a repository's top folder is wanted, weights aside.
fn is_setting(name: &str) -> bool {
    !name.contains('/')
        && (SETTINGS.contains(&name) || name.starts_with("tokenizer") || name.starts_with("chat_template"))
}

/// The first file that a usable snapshot needs and this one lacks.
fn missing_file(snapshot: &Path) -> Option<String> {
    let has = |name: &str| snapshot.join(name).is_file();
    if !has("config.json") {
        return Some("config.json".into());
    }
    if has(SINGLE) {
        return None;
    }
    if !has(INDEX) {
        return Some(SINGLE.into());
    }
    match super::shards_of_index(&snapshot.join(INDEX)) {
        Ok(shards) => shards.into_iter().find(|s| !has(s)),
        Err(_) => Some(INDEX.into()),
    }
}

/// A failure, and whether it came before a byte of the model was asked for.
struct Failed {
    error: Error,
    before_download: bool,
}

/// Brings everything wanted of a revision into the cache.
fn download(
    id: &HubId,
    repo: &Repo,
    options: &HubOptions,
    on_progress: OnProgress<'_>,
) -> std::result::Result<PathBuf, Failed> {
    let early = |error| Failed { error, before_download: true };
    let late = |error| Failed { error, before_download: false };
    let client = Client::new(options).map_err(early)?;
    let listing = client.listing(&id.repo, &id.revision).map_err(|f| early(explain(f, id, options)))?;
    let (commit, settings, weights) = match listing {
        Some(listing) => {
            let weights = choose_weights(&listing.files, id).map_err(late)?;
            let settings: Vec<String> = listing.files.into_iter().filter(|f| is_setting(f)).collect();
            (listing.commit, settings, weights)
        }
        // A mirror that serves files and no lists: known names are tried one by one.
        None => probe(&client, id, options).map_err(early)?,
    };
    let fetch = |file: &str| -> Result<PathBuf> {
        let pointer = repo.snapshot(&commit).join(file);
        if !pointer.is_file() {
            let found = client.metadata(&id.repo, &commit, file).map_err(|f| explain(f, id, options))?;
            repo.store(&found, &commit, file, |partial| {
                client
                    .download(&id.repo, &commit, file, &found, partial, on_progress)
                    .map_err(|f| explain(f, id, options))
            })?;
        }
        Ok(pointer)
    };
    for file in &settings {
        fetch(file).map_err(late)?;
    }
    let index = fetch(&weights).map_err(late)?;
    if weights == INDEX {
        let shards = super::shards_of_index(&index).map_err(late)?;
        in_parallel(shards, options.workers, |shard| fetch(shard).map(drop)).map_err(late)?;
    }
    // Last, so that a reference never leads to half a snapshot that was not there before.
    repo.point(&id.revision, &commit).map_err(late)?;
    let snapshot = repo.snapshot(&commit);
    match missing_file(&snapshot) {
        None => Ok(snapshot),
        Some(file) => Err(late(Error::Checkpoint(format!("{}@{}: has no {file}", id.repo, id.revision)))),
    }
}

/// The weight file to begin with: the single one, or the index of shards.
fn choose_weights(files: &[String], id: &HubId) -> Result<String> {
    for name in [SINGLE, INDEX] {
        if files.iter().any(|f| f == name) {
            return Ok(name.to_string());
        }
    }
    let found = match files.iter().find(|f| f.ends_with(".bin") || f.ends_with(".gguf") || f.ends_with(".pt")) {
        Some(other) => format!(
            "only {other}; look for a revision with safetensors (often {}@refs/pr/1), or convert it and give the directory",
            id.repo
        ),
        None => "no weights".to_string(),
    };
    Err(Error::Checkpoint(format!("{}@{}: expected {SINGLE} or {INDEX}, got {found}", id.repo, id.revision)))
}

/// Commit, settings and weights of a hub without lists.
fn probe(client: &Client, id: &HubId, options: &HubOptions) -> Result<(String, Vec<String>, String)> {
    let commit = match client.metadata(&id.repo, &id.revision, "config.json") {
        Ok(found) => found.commit,
        Err(failure) => return Err(explain(failure, id, options)),
    };
    let Some(commit) = commit else {
        return Err(Error::Checkpoint(format!(
            "{}@{}: {} names no commit (header X-Repo-Commit), so it is no mirror of a hub; check HF_ENDPOINT",
            id.repo, id.revision, options.endpoint
        )));
    };
    let exists = |file: &str| match client.metadata(&id.repo, &commit, file) {
        Ok(_) => Ok(true),
        Err(Failure::Status { status: 404, .. }) => Ok(false),
        Err(failure) => Err(explain(failure, id, options)),
    };
    let mut files = Vec::new();
    for file in SETTINGS.iter().chain(&[SINGLE, INDEX, "pytorch_model.bin"]) {
        if exists(file)? {
            files.push(file.to_string());
        }
    }
    let weights = choose_weights(&files, id)?;
    files.retain(|f| is_setting(f));
    Ok((commit, files, weights))
}

/// Runs `work` over all items on up to `workers` threads; the first error ends it.
fn in_parallel(items: Vec<String>, workers: usize, work: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let workers = workers.clamp(1, items.len().max(1));
    let queue = Mutex::new(VecDeque::from(items));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(item) = queue.lock().ok().and_then(|mut q| q.pop_front()) {
                    if let Err(error) = work(&item) {
                        if let (Ok(mut first), Ok(mut rest)) = (failed.lock(), queue.lock()) {
                            first.get_or_insert(error);
                            rest.clear();
                        }
                        return;
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => Err(Error::Internal("a download thread panicked".into())),
    }
}

/// A failure of the client as an error with the next step.
fn explain(failure: Failure, id: &HubId, options: &HubOptions) -> Error {
    let HubId { repo, revision } = id;
    let endpoint = &options.endpoint;
    let text = match failure {
        Failure::Status { status, code, url } => {
            let token = match options.token {
                Some(_) => "the account of HF_TOKEN",
                None => "an account, and set HF_TOKEN",
            };
            match (status, code.as_deref()) {
                (_, Some("RevisionNotFound")) => {
                    format!("{repo}: no revision {revision:?} at {endpoint}; check --revision")
                }
                (_, Some("GatedRepo")) | (403, _) => {
                    format!("{repo}: access refused ({status}); ask for it at {endpoint}/{repo} with {token}")
                }
                (401, _) if options.token.is_some() => {
                    format!("{repo}: {endpoint} does not accept the token (401); renew HF_TOKEN, or check the name")
                }
                (401, _) => format!(
                    "{repo}: not at {endpoint}, or private or gated (401); check the name, or ask for access at \
                     {endpoint}/{repo} with {token}"
                ),
                (404, Some("EntryNotFound")) => format!("{repo}@{revision}: {url} is not there (404)"),
                (404, _) => {
                    format!("{repo}: no such model or revision ({revision}) at {endpoint} (404); check the name")
                }
                (429, _) => {
                    format!("{repo}: {endpoint} wants fewer requests (429); wait some minutes, or set HF_TOKEN")
                }
                (500.., _) => format!("{repo}: {endpoint} is out of order ({status}); try again later"),
                _ => format!("{repo}: unexpected answer {status} for {url}"),
            }
        }
        Failure::Page { url } => format!(
            "{repo}: got a web page for {url}; is HF_ENDPOINT ({endpoint}) a hub, is a login page or proxy in between?"
        ),
        Failure::Unreachable { url, why } => format!(
            "{repo}: {url} cannot be reached: {why}; check the network, or set HF_ENDPOINT to a mirror, or give \
             --model a directory"
        ),
        Failure::Broken { file, why } => format!("{repo}@{revision}: {file}: {why}"),
        Failure::Other(error) => return error,
    };
    Error::Checkpoint(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<(String, String)> {
        let options = HubOptions::from_vars(&|_| None);
        parse_id(text, &options).unwrap().map(|id| (id.repo, id.revision))
    }

    #[test]
    fn ids_are_read() {
        let pair = |a: &str, b: &str| Some((a.to_string(), b.to_string()));
        assert_eq!(id("org/name"), pair("org/name", "main"));
        assert_eq!(id("org/na.me-8b_x@v1.0"), pair("org/na.me-8b_x", "v1.0"));
        assert_eq!(id("org/name@refs/pr/3"), pair("org/name", "refs/pr/3"));
        assert_eq!(id("https://huggingface.co/org/name/tree/dev"), pair("org/name", "dev"));
        assert_eq!(id("hf://org/name"), pair("org/name", "main"));
        for none in
            ["", "name", "a/b/c", "../x", "org/..", "org/.x", "/org/name", "org/na me", "org/a--b", "./dir/x", "org/"]
        {
            assert_eq!(id(none), None, "{none}");
        }
        let options = HubOptions::from_vars(&|_| None);
        for bad in ["org/name@", "org/name@../..", "org/name@a//b", "org/name@a\nb", "org/name@a:b"] {
            assert!(matches!(parse_id(bad, &options), Err(Error::Request(_))), "{bad}");
        }
        let flagged = HubOptions { revision: Some("v2".into()), ..options };
        assert_eq!(parse_id("org/name", &flagged).unwrap().unwrap().revision, "v2");
        assert!(parse_id("org/name@v1", &flagged).is_err());
    }

    #[test]
    fn names_that_are_nothing_say_what_is_expected() {
        let options = HubOptions { offline: true, ..HubOptions::from_vars(&|_| None) };
        let got = resolve("no-such", &[("small", "org/small")], &options, &|_| {}).unwrap_err();
        assert_eq!(got.exit_code(), 4);
        assert!(got.to_string().contains("or an alias (small)"), "{got}");
        let here = resolve("engine", &[], &options, &|_| {}).unwrap();
        assert_eq!(here, Path::new("engine"));
        let file = resolve("Cargo.toml", &[], &options, &|_| {}).unwrap_err().to_string();
        assert!(file.contains("is a file"), "{file}");
    }

    #[test]
    fn the_first_error_of_parallel_work_ends_it() {
        let seen = Mutex::new(Vec::new());
        let items: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        in_parallel(items.clone(), 3, |i| {
            seen.lock().unwrap().push(i.to_string());
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.lock().unwrap().len(), 20);
        let got = in_parallel(items, 1, |i| if i == "2" { Err(Error::Checkpoint(i.into())) } else { Ok(()) });
        assert_eq!(got.unwrap_err().to_string(), "checkpoint: 2");
    }
}
