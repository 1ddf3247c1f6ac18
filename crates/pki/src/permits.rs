//! Name constraints: which host names and addresses an issuing CA may certify.
//!
//! A limit of DNS names alone leaves addresses free (RFC 5280, section 4.2.1.10). So whoever names one kind excludes the
//! other. URIs cannot be limited: rustls refuses every certificate below a CA with such a constraint. The trust domain is
//! held by every daemon instead, which takes SPIFFE IDs of its own trust domain only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use serde::{Deserialize, Serialize};

use super::PkiError;

/// The host names and networks that an issuing CA may certify. Empty: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permits {
    /// DNS names, each with all names below it.
    pub dns: Vec<String>,
    /// Networks, as in `192.0.2.0/24`.
    pub ip: Vec<String>,
}

impl Permits {
    /// Whether any name may be certified.
    pub fn is_empty(&self) -> bool {
        self.dns.is_empty() && self.ip.is_empty()
    }

    /// Whether `dns` and `ip` may be certified.
    pub(super) fn check(&self, dns: &[String], ip: &[IpAddr]) -> Result<(), PkiError> {
        if self.is_empty() {
            return Ok(());
        }
        let is_below = |name: &str, base: &str| {
            let (name, base) = (name.to_ascii_lowercase(), base.to_ascii_lowercase());
            name == base || name.strip_suffix(&base).is_some_and(|rest| rest.ends_with('.'))
        };
        let networks: Vec<_> = self.ip.iter().filter_map(|text| network(text)).collect();
        let contains =
            |address: &IpAddr| networks.iter().any(|(base, bits)| is_within(*address, *base, *bits));
        let refused = |what: String| {
            let all = [self.dns.join(" "), self.ip.join(" ")].join(" ");
            Err(PkiError::Refused(format!(
                "{what} is not permitted: this authority certifies {}",
                all.trim()
            )))
        };
        if let Some(name) = dns.iter().find(|name| !self.dns.iter().any(|base| is_below(name, base))) {
            return refused(format!("DNS name {name}"));
        }
        if let Some(address) = ip.iter().find(|address| !contains(address)) {
            return refused(format!("address {address}"));
        }
        Ok(())
    }

    /// The extension for the CA.
    pub(super) fn constraints(&self) -> Result<Option<NameConstraints>, PkiError> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut constraints =
            NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees: Vec::new() };
        for name in &self.dns {
            let is_name = !name.starts_with('.')
                && !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            if !is_name {
                return Err(PkiError::Refused(format!("{name:?} is not a DNS name, as in \"example.org\"")));
            }
            constraints.permitted_subtrees.push(GeneralSubtree::DnsName(name.clone()));
        }
        for text in &self.ip {
            let Some((base, bits)) = network(text) else {
                return Err(PkiError::Refused(format!("{text:?} is not a network, as in \"192.0.2.0/24\"")));
            };
            let subnet = CidrSubnet::from_addr_prefix(base, bits);
            constraints.permitted_subtrees.push(GeneralSubtree::IpAddress(subnet));
        }
        let has = |is_v4: bool| {
            self.ip.iter().filter_map(|text| network(text)).any(|(base, _)| base.is_ipv4() == is_v4)
        };
        if self.dns.is_empty() {
            constraints.excluded_subtrees.push(GeneralSubtree::DnsName(String::new()));
        }
        // The two families are one kind of name, but a network of one says nothing about the other.
        for (is_v4, all) in
            [(true, IpAddr::V4(Ipv4Addr::UNSPECIFIED)), (false, IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
        {
            if !has(is_v4) {
                let subnet = CidrSubnet::from_addr_prefix(all, 0);
                constraints.excluded_subtrees.push(GeneralSubtree::IpAddress(subnet));
            }
        }
        Ok(Some(constraints))
    }
}

/// Address and prefix length of `ADDRESS/LENGTH`, or of one address.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (base, bits) = text.split_once('/').map_or((text, None), |(base, bits)| (base, Some(bits)));
    let base: IpAddr = base.parse().ok()?;
    let all = if base.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(all), |bits| bits.parse().ok())?;
    (bits <= all).then_some((base, bits))
}

fn is_within(address: IpAddr, base: IpAddr, bits: u8) -> bool {
    let shifted = |value: u128, width: u32| value.checked_shr(width - u32::from(bits)).unwrap_or(0);
    match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            shifted(u128::from(a.to_bits()), 32) == shifted(u128::from(b.to_bits()), 32)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => shifted(a.to_bits(), 128) == shifted(b.to_bits(), 128),
        _ => false,
    }
}
