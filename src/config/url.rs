//! URLs in settings: those of other daemons and that of the store.
//!
//! Owns their form. A password in the URL of the store is never printed.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What an operator may write for a peer or a pool server.
pub(super) const BASE_URL_FORM: &str = "https://HOST or https://HOST:PORT, without user, path or query";
/// What an operator may write for the store.
pub(super) const STORE_URL_FORM: &str = "sqlite://FILE (relative to this configuration file, or absolute as \
     sqlite:///var/lib/dqkd/site.db), postgres://USER@HOST/DATABASE";

/// Characters of file names that have a meaning in a `sqlite://` URL.
const SQLITE_PATH: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#').add(b' ');

/// `https://HOST[:PORT]`: the address of another daemon. Paths are appended to [`Self::as_str`].
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
        // One slash was stripped above; that of `https://x//` is left, and Uri reads it as the path "/".
        let slashes = text.matches('/').count();
        (plain && !host.is_empty() && slashes == 2).then(|| Self {
            text: format!("https://{}", authority.as_str().to_ascii_lowercase()),
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// `https://HOST[:PORT]` in lower case, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host name or address. An IPv6 address keeps its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 443 by default.
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

/// The parsed text of `[store] url`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoreUrl {
    /// A SQLite file, as written.
    Sqlite(PathBuf),
    /// A Postgres database. The store parses the rest.
    Postgres(PostgresUrl),
}

impl StoreUrl {
    /// `None` for anything but `sqlite://FILE` and `postgres://...`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Some(Self::Postgres(PostgresUrl(text.to_owned())));
        }
        let file = text.strip_prefix("sqlite://")?;
        if file.is_empty() || file.ends_with('/') || file.contains(['?', '#', ':']) {
            return None;
        }
        let file = percent_decode_str(file).decode_utf8().ok()?;
        (!file.contains('\0')).then(|| Self::Sqlite(PathBuf::from(file.into_owned())))
    }
}

/// The `sqlite://` URL of an absolute path, escaped.
pub(super) fn sqlite_url(path: &str) -> String {
    format!("sqlite://{}", utf8_percent_encode(path, SQLITE_PATH))
}

/// The URL of a Postgres database. `Display` and `Debug` do not show its password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

impl PostgresUrl {
    /// As it was written.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The parts before, in and after `user:password@`.
    fn parts(&self) -> (&str, Option<&str>, &str) {
        let (scheme, rest) = self.0.split_at(self.0.find("//").map_or(0, |at| at + 2));
        let authority = rest.find(['/', '?']).unwrap_or(rest.len());
        match rest.get(..authority).and_then(|authority| authority.rfind('@')) {
            Some(at) => (scheme, rest.get(..at), rest.get(at + 1..).unwrap_or_default()),
            None => (scheme, None, rest),
        }
    }

    pub(super) fn has_password(&self) -> bool {
        self.parts().1.is_some_and(|user| user.contains(':'))
    }

    pub(super) fn has_user(&self) -> bool {
        self.parts().1.is_some_and(|user| !user.is_empty() && !user.starts_with(':'))
    }

    /// The URL with `password` for its user.
    pub fn with_password(&self, password: &str) -> String {
        let (scheme, user, rest) = self.parts();
        let user = user.unwrap_or_default();
        format!("{scheme}{user}:{}@{rest}", utf8_percent_encode(password, NON_ALPHANUMERIC))
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, _, rest) = self.parts();
        write!(f, "{scheme}{}", rest.split('?').next().unwrap_or_default())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
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
        let url = PostgresUrl("postgres://u:p@h/db".to_owned());
        assert_eq!(StoreUrl::parse("postgres://u:p@h/db"), Some(StoreUrl::Postgres(url)));
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

    #[test]
    fn a_postgres_url_takes_a_password_and_never_shows_one() {
        let secret = PostgresUrl("postgres://u:hunter2@h1:1,h2/db?options=-cx%3Dhunter2".to_owned());
        assert_eq!((secret.has_password(), secret.has_user()), (true, true));
        for shown in [secret.to_string(), format!("{secret:?}")] {
            assert!(shown.contains("postgres://h1:1,h2/db") && !shown.contains("hunter2"), "{shown}");
        }
        let bare = PostgresUrl("postgresql://u@h/db?sslmode=disable".to_owned());
        assert!(!bare.has_password());
        assert_eq!(bare.with_password("p@ss/1"), "postgresql://u:p%40ss%2F1@h/db?sslmode=disable");
        let socket = PostgresUrl("postgres:///db?host=/run/x@y".to_owned());
        assert_eq!((socket.has_user(), socket.to_string()), (false, "postgres:///db".to_owned()));
    }
}
