//! The versions of TLS that a listener or a client accepts.

use rustls::SupportedProtocolVersion;

/// Which versions of TLS a listener or a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Only TLS 1.3.
    Latest,
    /// TLS 1.3, and 1.2 for old encryptors.
    Compatible,
}

impl Versions {
    pub(super) fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static LATEST: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        static COMPATIBLE: [&SupportedProtocolVersion; 2] =
            [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Latest => &LATEST,
            Self::Compatible => &COMPATIBLE,
        }
    }
}
