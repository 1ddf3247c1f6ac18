//! The keys of `certs-dev/`, which everybody has.
//!
//! A daemon that others can reach must not use them, under whatever file name.

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// SHA-256 of each, in hexadecimal, then the name. `certs-dev/regenerate.sh` writes it.
const LIST: &str = include_str!("development_keys.txt");

fn name_of(kind: &str, bytes: &[u8]) -> Option<&'static str> {
    let wanted = hex::encode(digest(&SHA256, bytes));
    LIST.lines().find_map(|line| {
        let mut words = line.split(' ');
        let is_it = words.next() == Some(kind) && words.next() == Some(&wanted);
        is_it.then(|| words.next()).flatten()
    })
}

/// The file in `certs-dev/` with the same public key as `certificate`.
pub(super) fn certificate(certificate: &CertificateDer<'_>) -> Option<&'static str> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    name_of("key", certificate.public_key().raw)
}

/// The file in `certs-dev/` with the same key-encryption key, given as 64 hexadecimal digits.
pub fn kek(digits: &str) -> Option<&'static str> {
    name_of("kek", digits.trim().to_ascii_lowercase().as_bytes())
}

/// Whether a file with this content is a secret of `certs-dev/`.
pub(super) fn is_public_secret(content: &[u8]) -> bool {
    name_of("file", content).is_some()
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn everything_in_certs_dev_is_known_whatever_it_is_called() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../certs-dev");
        let (mut certificates, mut keys, mut keks) = (0, 0, 0);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let content = std::fs::read(&path).unwrap();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("pem") => {
                    for found in CertificateDer::pem_slice_iter(&content) {
                        assert!(certificate(&found.unwrap()).is_some(), "{path:?}: run certs-dev/list.sh");
                        certificates += 1;
                    }
                }
                Some("key" | "kek") => {
                    assert!(is_public_secret(&content), "{path:?}: run certs-dev/list.sh");
                    keys += 1;
                    keks += usize::from(kek(&format!("{}\n", String::from_utf8(content).unwrap())).is_some());
                }
                _ => {}
            }
        }
        assert_eq!((certificates, keys, keks), (21, 12, 2));
        assert_eq!(kek(&"0".repeat(64)), None);
        assert!(!is_public_secret(b""));
    }
}
