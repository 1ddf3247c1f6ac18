//! The URL of a KME.

use std::fmt;
use std::str::FromStr;

use http::Uri;

const DEFAULT_PORT: u16 = 443;

/// The address of a KME: `https://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmeUrl {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

/// Why a text is not the address of a KME, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

impl KmeUrl {
    /// Host name or IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port; 443 unless the URL names one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as in an HTTP `Host` header.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == DEFAULT_PORT { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for KmeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl FromStr for KmeUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let wrong = |why: &str| UrlError(format!("{text}: {why}"));
        let meant = |why: &str, rest: &str| wrong(&format!("{why}; did you mean https://{rest}?"));
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| meant("a URL starts with https://", text))?;
        if !scheme.eq_ignore_ascii_case("https") {
            return Err(meant("a KME is called over https", rest));
        }
        let uri: Uri = text.parse().map_err(|_| wrong("this is not a URL; write https://HOST:PORT"))?;
        let authority = uri.authority().ok_or_else(|| wrong("the URL names no host"))?.as_str();
        if !matches!(uri.path_and_query().map(http::uri::PathAndQuery::as_str), None | Some("/")) {
            return Err(meant("give only host and port, the standard sets the path", authority));
        }
        let host =
            uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("the URL names no host"))?;
        let port = match authority.strip_prefix(host) {
            Some("") => DEFAULT_PORT,
            Some(_) => uri.port_u16().ok_or_else(|| wrong("the port is a number from 0 to 65535"))?,
            None => return Err(wrong("a user name has no place in it; the certificate says who calls")),
        };
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_read_and_shown() {
        for (text, host, port, shown) in [
            ("https://kme.example", "kme.example", 443, "https://kme.example"),
            ("https://kme.example:443/", "kme.example", 443, "https://kme.example"),
            ("HTTPS://127.0.0.1:8443", "127.0.0.1", 8443, "https://127.0.0.1:8443"),
            ("https://[::1]:8443", "::1", 8443, "https://[::1]:8443"),
        ] {
            let url: KmeUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.port(), url.to_string().as_str()), (host, port, shown));
        }
    }

    #[test]
    fn a_wrong_url_comes_with_the_one_that_was_meant() {
        for (text, said) in [
            ("127.0.0.1:8443", "did you mean https://127.0.0.1:8443?"),
            ("kme.example", "did you mean https://kme.example?"),
            ("http://kme.example:80", "did you mean https://kme.example:80?"),
            ("https://kme.example/api/v1/keys", "did you mean https://kme.example?"),
            ("https://kme.example:99999", "the port is a number"),
            ("https://alice@kme.example", "a user name has no place"),
            ("https://", "not a URL"),
            ("https://a b", "not a URL"),
        ] {
            let error = text.parse::<KmeUrl>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
