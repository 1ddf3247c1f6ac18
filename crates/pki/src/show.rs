//! Describes certificates and revocation lists as text.

use std::fmt::{Display, Write as _};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use kme::Timestamp;

/// Describes every certificate and every revocation list of a PEM text. `None` if there is none or one cannot be parsed.
pub fn describe(pem: &[u8]) -> Option<String> {
    let mut text = String::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, der) = section.ok()?;
        match kind {
            SectionKind::Certificate => {
                let (_, certificate) = X509Certificate::from_der(&der).ok()?;
                describe_certificate(&certificate, &mut text);
            }
            SectionKind::Crl => {
                let (_, list) = CertificateRevocationList::from_der(&der).ok()?;
                describe_list(&list, &mut text);
            }
            _ => {}
        }
    }
    (!text.is_empty()).then_some(text)
}

fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_ms(seconds.saturating_mul(1000))
}

fn line(text: &mut String, name: &str, value: &dyn Display) {
    let _ = writeln!(text, "{name:<10} {value}");
}

fn describe_list(list: &CertificateRevocationList<'_>, text: &mut String) {
    line(text, "list of", list.issuer());
    if let Some(number) = list.crl_number() {
        line(text, "number", number);
    }
    line(text, "from", &moment(list.last_update().timestamp()));
    match list.next_update() {
        Some(due) => line(text, "due", &moment(due.timestamp())),
        None => line(text, "due", &"never"),
    }
    let mut is_empty = true;
    for revoked in list.iter_revoked_certificates() {
        is_empty = false;
        let at = moment(revoked.revocation_date.timestamp());
        line(text, "revoked", &format!("{} at {at}", hex::encode(revoked.raw_serial())));
    }
    if is_empty {
        line(text, "revoked", &"none");
    }
    text.push('\n');
}

fn describe_certificate(certificate: &X509Certificate<'_>, text: &mut String) {
    line(text, "subject", certificate.subject());
    line(text, "issuer", certificate.issuer());
    line(text, "serial", &hex::encode(certificate.raw_serial()));
    line(text, "key", &format!("sha256:{}", hex::encode(digest(&SHA256, certificate.public_key().raw))));
    line(text, "from", &moment(certificate.validity().not_before.timestamp()));
    line(text, "until", &moment(certificate.validity().not_after.timestamp()));
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            describe_name("", name, text);
        }
    }
    if let Ok(Some(usage)) = certificate.extended_key_usage() {
        let usages = [("client", usage.value.client_auth), ("server", usage.value.server_auth)];
        let named: Vec<&str> = usages.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
        line(text, "usage", &named.join(", "));
    }
    if certificate.is_ca() {
        line(text, "usage", &"certificate authority");
    }
    for extension in certificate.extensions() {
        if let ParsedExtension::NameConstraints(constraints) = extension.parsed_extension() {
            for (word, trees) in
                [("permits ", &constraints.permitted_subtrees), ("excludes ", &constraints.excluded_subtrees)]
            {
                for tree in trees.iter().flatten() {
                    describe_name(word, &tree.base, text);
                }
            }
        }
    }
    text.push('\n');
}

fn describe_name(word: &str, name: &GeneralName<'_>, text: &mut String) {
    match name {
        GeneralName::URI(uri) => line(text, &format!("{word}uri"), uri),
        GeneralName::DNSName("") => line(text, &format!("{word}dns"), &"(all)"),
        GeneralName::DNSName(dns) => line(text, &format!("{word}dns"), dns),
        GeneralName::IPAddress(bytes) => line(text, &format!("{word}ip"), &address(bytes)),
        _ => {}
    }
}

/// An address, or a network with its mask.
fn address(bytes: &[u8]) -> String {
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return std::net::Ipv4Addr::from(bytes).to_string();
    }
    if let (Ok(base), Ok(mask)) = (<[u8; 4]>::try_from(half), <[u8; 4]>::try_from(rest)) {
        return format!("{}/{}", std::net::Ipv4Addr::from(base), u32::from_be_bytes(mask).count_ones());
    }
    if let (Ok(base), Ok(mask)) = (<[u8; 16]>::try_from(half), <[u8; 16]>::try_from(rest)) {
        return format!("{}/{}", std::net::Ipv6Addr::from(base), u128::from_be_bytes(mask).count_ones());
    }
    <[u8; 16]>::try_from(bytes)
        .map_or_else(|_| "(malformed)".to_owned(), |bytes| std::net::Ipv6Addr::from(bytes).to_string())
}
