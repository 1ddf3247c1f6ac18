//! Addresses in settings: base URLs of other daemons, and where the store is.
//!
//! Owns their form and nothing else; an address never carries a password past this room.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What an operator may write for a peer or a pool server.
pub(super) const BASE_URL_FORM: &str = "https://HOST or https://HOST:PORT, without user, path or query";
/// What an operator may write for the store.
pub(super) const STORE_URL_FORM: &str =
    "sqlite://FILE (relative to this configuration file, or absolute as sqlite:///var/lib/dqkd/site.db)";

/// What has a meaning in a `sqlite://` URL and may stand in a file name.
const SQLITE_PATH: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#').add(b' ');

/// `https://HOST[:PORT]`: where another daemon listens. Paths are appended to [`Self::as_str`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BaseUrl {
    text: String,
    host: String,
    port: u16,
}

impl BaseUrl {
    /// `None` unless `text` is `https://` with a host and nothing but an optional port after it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.contains(['@', '#', '?']) {
            return None;
        }
        let uri: http::Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let plain =
            uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let host = authority.host();
        let after_host = authority.as_str().strip_prefix(host)?;
        let port = match after_host.strip_prefix(':') {
            Some(port) => port.parse::<u16>().ok().filter(|port| *port > 0)?,
            None if after_host.is_empty() => 443,
            None => return None,
        };
        // `https://x/` was stripped once; `https://x//` leaves a path that Uri reads as "/".
        let slashes = text.matches('/').count();
        (plain && !host.is_empty() && slashes == 2).then(|| Self {
            text: format!("https://{}", authority.as_str().to_ascii_lowercase()),
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// `https://HOST[:PORT]`, lower case, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host name or address; an IPv6 address keeps its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 443 when none is written.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseUrl({})", self.text)
    }
}

/// What the text of `[store] url` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoreUrl {
    /// A SQLite file, as written.
    Sqlite(PathBuf),
    /// A Postgres server: read, so that the message can say that it is not available yet.
    Postgres,
}

impl StoreUrl {
    /// `None` for anything but `sqlite://FILE` and `postgres://...`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Some(Self::Postgres);
        }
        let file = text.strip_prefix("sqlite://")?;
        if file.is_empty() || file.ends_with('/') || file.contains(['?', '#', ':']) {
            return None;
        }
        let file = percent_decode_str(file).decode_utf8().ok()?;
        (!file.contains('\0')).then(|| Self::Sqlite(PathBuf::from(file.into_owned())))
    }
}

/// The `sqlite://` URL of an absolute path, with the characters escaped that a URL gives a meaning.
pub(super) fn sqlite_url(path: &str) -> String {
    format!("sqlite://{}", utf8_percent_encode(path, SQLITE_PATH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_https_with_a_host_and_at_most_a_port() {
        for (text, normal, host, port) in [
            ("https://Site-B.example:9443", "https://site-b.example:9443", "site-b.example", 9443),
            ("https://site-b.example/", "https://site-b.example", "site-b.example", 443),
            ("https://[::1]:9443", "https://[::1]:9443", "[::1]", 9443),
        ] {
            let url = BaseUrl::parse(text).unwrap();
            assert_eq!((url.as_str(), url.host(), url.port()), (normal, host, port));
        }
        for text in [
            "",
            "site-b",
            "http://site-b",
            "https://",
            "https:///",
            "https://user@site-b",
            "https://u:p@site-b",
            "https://b/x",
            "https://b?x",
            "https://b/?x",
            "https://b#x",
            "https://b:0",
            "https://b:99999",
            "https://b:x",
            "https://b//",
            "https://b:",
            "https://a b",
        ] {
            assert_eq!(BaseUrl::parse(text), None, "{text}");
        }
    }

    #[test]
    fn store_urls_name_a_file() {
        assert_eq!(StoreUrl::parse("sqlite://a.db"), Some(StoreUrl::Sqlite("a.db".into())));
        assert_eq!(StoreUrl::parse("sqlite:///var/a%20b.db"), Some(StoreUrl::Sqlite("/var/a b.db".into())));
        assert_eq!(StoreUrl::parse("postgres://u:p@h/db"), Some(StoreUrl::Postgres));
        for text in [
            "",
            "sqlite://",
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://a.db?mode=ro",
            "mysql://x",
            "a.db",
            "sqlite://dir/",
        ] {
            assert_eq!(StoreUrl::parse(text), None, "{text}");
        }
        assert_eq!(sqlite_url("/var/a b%.db"), "sqlite:///var/a%20b%25.db");
    }
}
