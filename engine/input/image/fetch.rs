//! Images by URL.
//!
//! In: an http(s) URL, limits. Out: the body. Owns: time and size limits, redirects, which hosts may be asked.
//! Not here: other sources (`source.rs`).
//!
//! Where private hosts are not allowed, the addresses that a name resolves to are checked before one is dialled, on
//! every redirect again, and the checked address is the one that is dialled: neither a name that points inside, nor an
//! odd spelling of an address, nor an answer that changes gets through. A proxy would resolve names itself, so none is used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Proxy};

use super::source::{SourceOptions, capped};
use crate::{Error, Result};

const MAX_REDIRECTS: u32 = 5;
/// Time for a connection; a host that does not answer is not worth the whole time limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches a URL.
pub(super) fn get(url: &str, options: &SourceOptions) -> Result<Vec<u8>> {
    let name = without_secrets(url);
    let fail = |what: &str| Error::Request(format!("image {name}: {what}"));
    // The same words for everything that a server must not tell apart.
    let refused = || fail("this host cannot be fetched from; send a public URL or a data: URI");
    let uri: Uri = url.parse().map_err(|_| fail("not a valid URL"))?;
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if has_user && !options.allow_private_hosts {
        return Err(refused());
    }
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .max_redirects_will_error(true)
        .proxy(if options.allow_private_hosts { Proxy::try_from_env() } else { None })
        .user_agent(concat!("engine/", env!("CARGO_PKG_VERSION")))
        .accept("image/*,*/*;q=0.5")
        .timeout_global(Some(options.timeout))
        .timeout_connect(Some(CONNECT_TIMEOUT.min(options.timeout)))
        .build();
    let resolver = PublicResolver { inner: DefaultResolver::default(), allow_private: options.allow_private_hosts };
    let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);
    let explain = |error: ureq::Error| match error {
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied && is_refusal(&error) => {
            refused()
        }
        ureq::Error::HostNotFound | ureq::Error::Io(_) if !options.allow_private_hosts => refused(),
        ureq::Error::Timeout(_) => fail(&format!("no answer within {} s", options.timeout.as_secs_f32())),
        ureq::Error::TooManyRedirects => fail(&format!("more than {MAX_REDIRECTS} redirects")),
        other => fail(&other.to_string()),
    };
    let response = agent.get(url).call().map_err(explain)?;
    let status = response.status();
    if !status.is_success() {
        let reason = status.canonical_reason().unwrap_or("");
        return Err(fail(&format!("the server answers {} {reason}", status.as_u16())));
    }
    let body = response.into_body();
    let size = body.content_length();
    let reader = body.into_with_config().limit(options.max_bytes.saturating_add(1)).reader();
    let bytes = capped(reader, size, &name, options.max_bytes)?;
    match size {
        Some(size) if size != bytes.len() as u64 => {
            Err(fail(&format!("the connection ended after {} of {size} bytes", bytes.len())))
        }
        _ => Ok(bytes),
    }
}

/// A URL as errors may show it: no user, no query.
fn without_secrets(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (scheme, rest) = url[..end].split_once("://").unwrap_or(("", &url[..end]));
    let path = rest.find('/').unwrap_or(rest.len());
    let host = rest[..path].rsplit('@').next().unwrap_or("");
    format!("{scheme}://{host}{}", &rest[path..])
}

/// Resolves names, and refuses those that lead to hosts off the public internet.
#[derive(Debug)]
struct PublicResolver {
    inner: DefaultResolver,
    allow_private: bool,
}

/// What a refused address ends with.
#[derive(Debug)]
struct Refusal;

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("not a public address")
    }
}

impl std::error::Error for Refusal {}

fn is_refusal(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refusal>())
}

impl Resolver for PublicResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.inner.resolve(uri, config, timeout)?;
        let is_public = |address: &SocketAddr| is_public(address.ip());
        if self.allow_private || addresses.iter().all(is_public) {
            return Ok(addresses);
        }
        Err(ureq::Error::Io(std::io::Error::new(std::io::ErrorKind::PermissionDenied, Refusal)))
    }
}

/// Whether an address is one of the public internet (IANA's special-purpose registries, late 2026). Addresses that
/// carry another one inside (NAT64, 6to4, Teredo, IPv4 in IPv6) are not.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, _, _)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Global unicast is 2000::/3; out of it fall 2001::/23 (Teredo and others), documentation and 6to4.
    a & 0xe000 == 0x2000 && !(a == 0x2001 && (b < 0x0200 || b == 0x0db8)) && a != 0x2002 && !(a == 0x3fff && b < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_told_from_others() {
        for public in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.63.0.1", "2606:4700::1111", "2a00:1450:4001::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.0.1",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    #[test]
    fn errors_show_neither_user_nor_query() {
        assert_eq!(without_secrets("https://user:pw@host:8/a/b.png?token=1#x"), "https://host:8/a/b.png");
        assert_eq!(without_secrets("http://host"), "http://host");
        assert_eq!(without_secrets("http://host?x=@y/z"), "http://host");
    }
}
