//! The hub's HTTP: what a revision holds, what a file is, its bytes.
//!
//! In: repository, revision, file. Out: commits, entity tags, a complete and checked file. Owns: redirects,
//! resumption, who gets the token. Not here: the cache, wording for the user (`explain` in `mod.rs`).
//!
//! Redirects are followed here and not by the HTTP library: the headers X-Repo-Commit, X-Linked-Etag and
//! X-Linked-Size come with the first answers, and the token must not follow to another host.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::env::HubOptions;
use super::{OnProgress, Progress, cache};
use crate::{Error, Result};

const MAX_HOPS: usize = 8;
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// What a revision holds.
pub struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// What a file is.
#[derive(Debug, Clone)]
pub struct Found {
    pub commit: Option<String>,
    /// Sha256 in hexadecimal for large files, git's object id otherwise; fit for a file name.
    pub etag: String,
    pub size: Option<u64>,
}

/// What went wrong, for `explain`.
#[derive(Debug)]
pub enum Failure {
    /// An answer that is no success; `code` is the hub's X-Error-Code.
    Status {
        status: u16,
        code: Option<String>,
        url: String,
    },
    /// HTML where a file or a list was expected.
    Page {
        url: String,
    },
    /// No answer.
    Unreachable {
        url: String,
        why: String,
    },
    /// An answer that is not the file.
    Broken {
        file: String,
        why: String,
    },
    Other(Error),
}

type Outcome<T> = std::result::Result<T, Failure>;

pub struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
}

impl<'a> Client<'a> {
    /// A client; no connection is made yet. Errors: an unusable SSL_CERT_FILE or proxy variable.
    pub fn new(options: &'a HubOptions) -> Result<Client<'a>> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &options.ca_file {
            let fail = |what: String| Error::Request(format!("SSL_CERT_FILE: {}: {what}", path.display()));
            let pem = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
            let mut certificates = Vec::new();
            for item in parse_pem(&pem) {
                if let PemItem::Certificate(c) = item.map_err(|e| fail(e.to_string()))? {
                    certificates.push(c);
                }
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(if options.proxy_from_env { Proxy::try_from_env() } else { None })
            .user_agent(concat!("engine/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .timeout_resolve(Some(options.etag_timeout))
            .timeout_connect(Some(options.etag_timeout))
            .timeout_recv_response(Some(options.etag_timeout.max(options.download_timeout)))
            .timeout_per_read(Some(options.download_timeout))
            .build();
        Ok(Client { agent: config.new_agent(), options })
    }

    /// The commit and the files of a revision; `None` where the server has no such service.
    pub fn listing(&self, repo: &str, revision: &str) -> Outcome<Option<Listing>> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{repo}/revision/{}", self.options.endpoint, quote(revision));
        let (url, mut response) = self.follow(Method::Get, &url, None, |_| false)?;
        let code = header(response.headers(), "x-error-code");
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if code.is_none() => return Ok(None),
            status => return Err(Failure::Status { status: status.as_u16(), code, url }),
        }
        if is_page(response.headers()) {
            return Err(Failure::Page { url });
        }
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let body = body.map_err(|e| Failure::Unreachable { url: url.clone(), why: e.to_string() })?;
        let broken = |why: String| Failure::Broken { file: url.clone(), why };
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| broken(format!("expected a list of files, got something else ({e})")))?;
        if !cache::is_commit(&answer.sha) {
            return Err(broken(format!("expected a commit, got {:?}", answer.sha)));
        }
        let files = answer.siblings.into_iter().map(|s| s.rfilename).filter(|f| is_safe(f)).collect();
        Ok(Some(Listing { commit: answer.sha, files }))
    }

    /// Commit, entity tag and size of a file.
    pub fn metadata(&self, repo: &str, revision: &str, file: &str) -> Outcome<Found> {
        let mut found = Found { commit: None, etag: String::new(), size: None };
        let url = self.file_url(repo, revision, file);
        let (url, response) = self.follow(Method::Head, &url, None, |headers| {
            found.commit = header(headers, "x-repo-commit").filter(|c| cache::is_commit(c)).or(found.commit.take());
            found.size = header(headers, "x-linked-size").and_then(|s| s.parse().ok()).or(found.size);
            if let Some(etag) = header(headers, "x-linked-etag") {
                found.etag = etag;
            }
            // A large file's own store is asked for bytes alone.
            !found.etag.is_empty()
        })?;
        let status = response.status();
        let headers = response.headers();
        if !status.is_success() && !status.is_redirection() {
            let code = header(headers, "x-error-code");
            return Err(Failure::Status { status: status.as_u16(), code, url });
        }
        if is_page(headers) && status.is_success() {
            return Err(Failure::Page { url });
        }
        if found.etag.is_empty() {
            found.etag = header(headers, "etag").unwrap_or_default();
        }
        if status.is_success() {
            found.size = found.size.or_else(|| header(headers, "content-length").and_then(|s| s.parse().ok()));
        }
        found.etag = found.etag.trim_start_matches("W/").trim_matches('"').to_string();
        let fit = !found.etag.is_empty()
            && found.etag.len() <= 128
            && found.etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !fit {
            let why = format!("{url} sends no usable ETag ({:?}); check HF_ENDPOINT", found.etag);
            return Err(Failure::Broken { file: file.into(), why });
        }
        Ok(found)
    }

    /// Completes `partial`: what is there already is kept, the rest is asked for, cut connections are taken up
    /// again. Length, and for sha256 tags the contents, are those that the hub announced, or it is an error and
    /// the partial file is gone.
    pub fn download(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        found: &Found,
        partial: &Path,
        on_progress: OnProgress<'_>,
    ) -> Outcome<()> {
        let local = |e: std::io::Error| Failure::Other(Error::Checkpoint(format!("{}: {e}", partial.display())));
        let url = self.file_url(repo, revision, file);
        let mut out =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(partial).map_err(local)?;
        let mut done = out.seek(SeekFrom::End(0)).map_err(local)?;
        let mut idle = 0;
        let mut delay = self.options.retry_delay;
        while found.size.is_none_or(|size| done < size) || (done == 0 && found.size == Some(0)) {
            let before = done;
            let failure = match self.piece(&url, file, found, &mut out, &mut done, on_progress) {
                Ok(()) => break,
                Err(failure) => failure,
            };
            let lasting = match &failure {
                Failure::Status { status, .. } => !matches!(status, 408 | 429 | 500..),
                Failure::Unreachable { .. } => false,
                _ => true,
            };
            if done > before {
                (idle, delay) = (0, self.options.retry_delay);
            } else {
                idle += 1;
            }
            if lasting || idle > self.options.retries {
                return Err(failure);
            }
            tracing::info!("{file}: cut after {done} bytes, going on ({failure:?})");
            std::thread::sleep(delay);
            delay = (delay * 2).min(Duration::from_secs(30));
        }
        out.sync_all().map_err(local)?;
        let wrong = self.check(file, found, &mut out, done).map_err(local)?;
        if let Some(why) = wrong {
            // Kept, it would be taken up again and never become right.
            std::fs::remove_file(partial).map_err(local)?;
            return Err(Failure::Broken { file: file.into(), why });
        }
        Ok(())
    }

    /// One request for the bytes from `done` on, written behind them.
    fn piece(
        &self,
        url: &str,
        file: &str,
        found: &Found,
        out: &mut File,
        done: &mut u64,
        on_progress: OnProgress<'_>,
    ) -> Outcome<()> {
        let local = |e: std::io::Error| Failure::Other(Error::Checkpoint(format!("{file}: cannot be written: {e}")));
        let (url, mut response) = self.follow(Method::Get, url, (*done > 0).then_some(*done), |_| false)?;
        let status = response.status();
        let start = match status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let range = header(response.headers(), "content-range").unwrap_or_default();
                match range.strip_prefix("bytes ").and_then(|r| r.split('-').next()).and_then(|s| s.parse().ok()) {
                    Some(start) if start <= *done => start,
                    _ => {
                        let why = format!("asked for bytes from {done}, got {range:?}");
                        return Err(Failure::Broken { file: file.into(), why });
                    }
                }
            }
            // The partial file is longer than the file: begin anew.
            StatusCode::RANGE_NOT_SATISFIABLE if *done > 0 => {
                out.set_len(0).map_err(local)?;
                *done = 0;
                return Err(Failure::Unreachable {
                    url,
                    why: "the server has fewer bytes than the partial file".into(),
                });
            }
            _ => {
                let code = header(response.headers(), "x-error-code");
                return Err(Failure::Status { status: status.as_u16(), code, url });
            }
        };
        if is_page(response.headers()) {
            return Err(Failure::Page { url });
        }
        out.seek(SeekFrom::Start(start)).map_err(local)?;
        out.set_len(start).map_err(local)?;
        *done = start;
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 20];
        loop {
            on_progress(Progress { file, done_bytes: *done, total_bytes: found.size });
            let n = match body.read(&mut buffer) {
                Ok(0) => return self.end_of_body(url, found, *done),
                Ok(n) => n,
                Err(e) => return Err(Failure::Unreachable { url, why: e.to_string() }),
            };
            out.write_all(&buffer[..n]).map_err(local)?;
            *done += n as u64;
            if found.size.is_some_and(|size| *done > size) {
                let why = format!("expected {} bytes, the server sends more", found.size.unwrap_or(0));
                return Err(Failure::Broken { file: file.into(), why });
            }
        }
    }

    /// A body that ends early without an error (a server that closes instead of sending a length).
    fn end_of_body(&self, url: String, found: &Found, done: u64) -> Outcome<()> {
        match found.size {
            Some(size) if done < size => {
                Err(Failure::Unreachable { url, why: format!("the connection ended after {done} of {size} bytes") })
            }
            _ => Ok(()),
        }
    }

    /// What is wrong with a finished download.
    fn check(&self, file: &str, found: &Found, out: &mut File, done: u64) -> std::io::Result<Option<String>> {
        if let Some(size) = found.size.filter(|&size| size != done) {
            return Ok(Some(format!("expected {size} bytes, got {done}; try again")));
        }
        let is_sha256 = found.etag.len() == 64 && found.etag.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_sha256 {
            return Ok(None);
        }
        out.seek(SeekFrom::Start(0))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match out.read(&mut buffer)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        let got: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        tracing::debug!("{file}: sha256 {got}");
        Ok((got != found.etag.to_ascii_lowercase()).then(|| {
            format!("expected sha256 {}, got {got}; the mirror or the connection damages it, try again", found.etag)
        }))
    }

    /// Sends a request and follows its redirects; `stop` sees the headers of each answer and may end it there.
    fn follow(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        mut stop: impl FnMut(&HeaderMap) -> bool,
    ) -> Outcome<(String, Response<Body>)> {
        let mut url = url.to_string();
        for _ in 0..MAX_HOPS {
            let mut request = match method {
                Method::Get => self.agent.get(&url),
                Method::Head => self.agent.head(&url),
            };
            // A compressed answer would have neither the length nor the ranges that the headers speak of.
            request = request.header("accept-encoding", "identity");
            if let Some(from) = from {
                request = request.header("range", format!("bytes={from}-"));
            }
            if let Some(token) = &self.options.token
                && authority(&url).is_some()
                && authority(&url) == authority(&self.options.endpoint)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| Failure::Unreachable { url: short(&url), why: e.to_string() })?;
            let ended = stop(response.headers());
            let next = header(response.headers(), "location").filter(|_| response.status().is_redirection());
            match next {
                Some(location) if !ended => url = join(&url, &location),
                _ => return Ok((short(&url), response)),
            }
        }
        Err(Failure::Unreachable { url: short(&url), why: format!("more than {MAX_HOPS} redirects") })
    }

    fn file_url(&self, repo: &str, revision: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(quote).collect();
        format!("{}/{repo}/resolve/{}/{}", self.options.endpoint, quote(revision), file.join("/"))
    }
}

#[derive(Clone, Copy)]
enum Method {
    Get,
    Head,
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_string)
}

fn is_page(headers: &HeaderMap) -> bool {
    header(headers, "content-type").is_some_and(|t| t.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// A file name that stays within its folder.
fn is_safe(file: &str) -> bool {
    !file.is_empty()
        && !file.contains(['\\', ':', '\0'])
        && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Percent-encodes everything but unreserved characters, so that a slash in a revision stays part of it.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// Scheme and host with port, lower case; whatever else stands there (a user name) makes it another.
fn authority(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    Some(format!("{scheme}://{host}").to_ascii_lowercase())
}

/// The address that a Location header names, seen from `base`.
fn join(base: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_string();
    }
    let scheme = base.split_once("://").map_or("https", |(s, _)| s);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let root = &base
        [..base.len() - base.split_once("://").map_or(0, |(_, r)| r.find(['/', '?', '#']).map_or(0, |i| r.len() - i))];
    if location.starts_with('/') {
        return format!("{root}{location}");
    }
    let path = base[root.len()..].split(['?', '#']).next().unwrap_or_default();
    let folder = path.rfind('/').map_or("/", |i| &path[..=i]);
    format!("{root}{folder}{location}")
}

/// An address for messages: signed queries are long and secret.
fn short(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base = "http://h:1/a/b?q=/x";
        for (location, want) in [
            ("https://cdn/x", "https://cdn/x"),
            ("//cdn/x", "http://cdn/x"),
            ("/c?d", "http://h:1/c?d"),
            ("c", "http://h:1/a/c"),
        ] {
            assert_eq!(join(base, location), want);
        }
        assert_eq!(join("http://h", "/c"), "http://h/c");
        assert_eq!(join("http://h", "c"), "http://h/c");
    }

    #[test]
    fn only_the_same_host_is_trusted() {
        let home = authority("https://hub.example");
        assert_eq!(authority("https://HUB.example/x?y"), home);
        for other in
            ["http://hub.example", "https://hub.example:444", "https://hub.example@evil/", "https://evil/hub.example"]
        {
            assert_ne!(authority(other), home, "{other}");
        }
    }

    #[test]
    fn names_and_revisions_are_quoted_and_safe() {
        assert_eq!(quote("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(quote("a b?#"), "a%20b%3F%23");
        assert!(is_safe("a/b.json") && is_safe("model-00001.safetensors"));
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "c:\\x", "a\\b", "."] {
            assert!(!is_safe(bad), "{bad}");
        }
    }
}
