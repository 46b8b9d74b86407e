//! Options of the hub, from huggingface_hub's environment variables.
//!
//! In: a lookup of variables. Out: [`HubOptions`]. Not here: the command line's flags, which overwrite fields.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where models come from and how. Built from the environment, then overwritten by flags.
#[derive(Clone)]
pub struct HubOptions {
    /// Branch, tag or commit; a model's own `@revision` must not differ.
    pub revision: Option<String>,
    /// No network: what is not in the cache is an error.
    pub offline: bool,
    /// Holds `models--org--name` folders.
    pub cache_dir: PathBuf,
    /// Scheme and host, without a final slash.
    pub endpoint: String,
    /// Sent to `endpoint` alone, never to where it redirects.
    pub token: Option<String>,
    /// For answers about files.
    pub etag_timeout: Duration,
    /// Longest silence within a download.
    pub download_timeout: Duration,
    /// Attempts after a cut download that bring no new byte.
    pub retries: u32,
    /// Before the first of them; doubled each time.
    pub retry_delay: Duration,
    /// Link snapshots to blobs; without, blobs are copied to where they are read.
    pub symlinks: bool,
    /// Shards downloaded at once.
    pub workers: usize,
    /// Use HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.
    pub proxy_from_env: bool,
    /// PEM file of certificate authorities to trust instead of the built-in list.
    pub ca_file: Option<PathBuf>,
}

impl HubOptions {
    /// The process's environment.
    pub fn from_env() -> HubOptions {
        let options = HubOptions::from_vars(&|name| std::env::var(name).ok());
        HubOptions { proxy_from_env: true, ..options }
    }

    /// As [`HubOptions::from_env`] with variables from elsewhere, and no proxy.
    pub fn from_vars(var: &dyn Fn(&str) -> Option<String>) -> HubOptions {
        let set = |name: &str| var(name).filter(|v| !v.is_empty());
        let path = |name: &str| set(name).map(|v| expand_home(&v, var));
        let is_true = |name: &str| {
            set(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()))
        };
        let seconds = |name: &str, default: u64| {
            Duration::from_secs(set(name).and_then(|v| v.trim().parse().ok()).filter(|s| *s > 0).unwrap_or(default))
        };
        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME").unwrap_or_else(|| expand_home("~/.cache", var)).join("huggingface")
        });
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = || {
            let text = set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| std::fs::read_to_string(&token_path).ok())?;
            let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
            (!text.is_empty()).then_some(text)
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        HubOptions {
            revision: None,
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            cache_dir: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { token() },
            etag_timeout: seconds("HF_HUB_ETAG_TIMEOUT", 10),
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", 10),
            retries: 5,
            retry_delay: Duration::from_millis(500),
            symlinks: !is_true("HF_HUB_DISABLE_SYMLINKS"),
            workers: 4,
            proxy_from_env: false,
            ca_file: path("SSL_CERT_FILE"),
        }
    }
}

/// `~` and `~/x` under HOME; everything else as it is.
fn expand_home(text: &str, var: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let home = || var("HOME").filter(|h| !h.is_empty()).unwrap_or_else(|| ".".into());
    match text.strip_prefix('~') {
        Some("") => PathBuf::from(home()),
        Some(rest) if rest.starts_with('/') => Path::new(&home()).join(&rest[1..]),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> HubOptions {
        let vars: Vec<(String, String)> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HubOptions::from_vars(&|name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn cache_is_where_python_has_it() {
        let cache = |vars: &[(&str, &str)]| options(vars).cache_dir.to_string_lossy().into_owned();
        assert_eq!(cache(&[("HOME", "/u")]), "/u/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")]), "/c/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/c")]), "/u/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/new");
    }

    #[test]
    fn flags_endpoint_and_token() {
        for (value, offline) in [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("", false)] {
            assert_eq!(options(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert_eq!(options(&[]).endpoint, "https://huggingface.co");
        assert_eq!(options(&[("HF_ENDPOINT", "http://mirror:8080/")]).endpoint, "http://mirror:8080");
        assert_eq!(options(&[("HF_HUB_DOWNLOAD_TIMEOUT", "30")]).download_timeout, Duration::from_secs(30));
        assert_eq!(options(&[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).download_timeout, Duration::from_secs(10));

        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(dir.path().join("other"), "hf_other").unwrap();
        let other = format!("{home}/other");
        let token = |vars: &[(&str, &str)]| options(vars).token;
        assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN_PATH", &other)]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[("HF_HOME", home), ("HUGGING_FACE_HUB_TOKEN", "old")]).as_deref(), Some("old"));
        assert_eq!(token(&[("HF_TOKEN", " new\n"), ("HUGGING_FACE_HUB_TOKEN", "old")]).as_deref(), Some("new"));
        assert_eq!(token(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HOME", "/nonexistent")]), None);
    }
}
