//! Describes certificates as text.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use kme::Timestamp;

/// Describes every certificate of a PEM text. `None` if there is none or one cannot be parsed.
pub fn describe(pem: &[u8]) -> Option<String> {
    let mut text = String::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        describe_one(&certificate, &mut text);
    }
    (!text.is_empty()).then_some(text)
}

fn describe_one(certificate: &X509Certificate<'_>, text: &mut String) {
    let moment = |seconds: i64| Timestamp::from_ms(seconds.saturating_mul(1000));
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("subject", &certificate.subject());
    line("issuer", &certificate.issuer());
    line("serial", &hex::encode(certificate.raw_serial()));
    line("key", &format!("sha256:{}", hex::encode(digest(&SHA256, certificate.public_key().raw))));
    line("from", &moment(certificate.validity().not_before.timestamp()));
    line("until", &moment(certificate.validity().not_after.timestamp()));
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => line("uri", uri),
                GeneralName::DNSName(dns) => line("dns", dns),
                GeneralName::IPAddress(bytes) => line("ip", &address(bytes)),
                _ => {}
            }
        }
    }
    if let Ok(Some(usage)) = certificate.extended_key_usage() {
        let usages = [("client", usage.value.client_auth), ("server", usage.value.server_auth)];
        let named: Vec<&str> = usages.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
        line("usage", &named.join(", "));
    }
    if certificate.is_ca() {
        line("usage", &"certificate authority");
    }
    text.push('\n');
}

fn address(bytes: &[u8]) -> String {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return std::net::Ipv4Addr::from(bytes).to_string();
    }
    <[u8; 16]>::try_from(bytes)
        .map_or_else(|_| "(malformed)".to_owned(), |bytes| std::net::Ipv6Addr::from(bytes).to_string())
}
