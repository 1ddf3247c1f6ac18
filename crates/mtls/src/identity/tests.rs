use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};

use super::*;

fn sae(id: &str) -> AuthenticatedSae {
    AuthenticatedSae::new(id.parse().unwrap())
}

fn kme(id: &str) -> AuthenticatedKme {
    AuthenticatedKme(id.parse().unwrap())
}

fn rules(sources: &[SaeIdentitySource]) -> IdentityRules {
    IdentityRules { trust_domain: "dqkd.example".to_owned(), sae_sources: sources.to_vec() }
}

fn leaf(uris: &[&str], dns: &[&str], cn: Option<&str>) -> Vec<u8> {
    leaf_for(&[ServerAuth, ClientAuth], uris, dns, cn)
}

fn leaf_for(usages: &[ExtendedKeyUsagePurpose], uris: &[&str], dns: &[&str], cn: Option<&str>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.extended_key_usages = usages.to_vec();
    if let Some(cn) = cn {
        params.distinguished_name.push(DnType::CommonName, cn);
    }
    let uri = |uri: &&str| SanType::URI(Ia5String::try_from(*uri).unwrap());
    let name = |dns: &&str| SanType::DnsName(Ia5String::try_from(*dns).unwrap());
    params.subject_alt_names = uris.iter().map(uri).chain(dns.iter().map(name)).collect();
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

use SaeIdentitySource::{Cn, Dns, Fingerprint, Spiffe};

#[test]
fn the_kind_in_the_uri_decides() {
    let of = |uri: &str| identify(&leaf(&[uri], &[], Some("x")), &rules(&[Spiffe, Cn]));
    assert_eq!(of("spiffe://dqkd.example/sae/alice"), Ok(Identity::Sae(sae("alice"))));
    assert_eq!(of("spiffe://dqkd.example/kme/site-a"), Ok(Identity::Kme(kme("site-a"))));
    assert_eq!(of("spiffe://dqkd.example/pool/Pool-1._a"), Ok(Identity::Pool("Pool-1._a".parse().unwrap())));
    assert_eq!(of("spiffe://dqkd.example/operator/olga"), Ok(Identity::Operator("olga".to_owned())));
}

#[test]
fn a_uri_of_another_form_or_domain_names_nobody_even_where_the_common_name_would_do() {
    for uri in [
        "spiffe://dqkd.example/sae/",
        "spiffe://dqkd.example/sae",
        "spiffe://dqkd.example/",
        "spiffe://dqkd.example",
        "spiffe://dqkd.example/SAE/alice",
        "spiffe://dqkd.example/admin/alice",
        "spiffe://dqkd.example/sae/alice/kme",
        "spiffe://dqkd.example/sae/alice?x",
        "spiffe://dqkd.example/sae/alice#x",
        "spiffe://dqkd.example/sae/.",
        "spiffe://dqkd.example/sae/..",
        "spiffe://dqkd.example//alice",
        "spiffe:/dqkd.example/sae/alice",
        "spiffe:dqkd.example/sae/alice",
        // One holder would have several spellings.
        "SPIFFE://dqkd.example/sae/alice",
        "Spiffe://dqkd.example/sae/alice",
        "spiffe://dqkd.example/sae/%61lice",
        "spiffe://dqkd.example/sae/sae%201",
        "spiffe://dqkd.example/kme/site%2Da",
        "spiffe://dqkd.example/sae/%ff",
        "spiffe://dqkd.example/sae/al ice",
        "spiffe://dqkd.example/sae/alice~",
    ] {
        let result = identify(&leaf(&[uri], &[], Some("alice")), &rules(&[Spiffe, Cn]));
        assert!(matches!(result, Err(IdentityError::UnknownForm(_))), "{uri}: {result:?}");
    }
    for uri in [
        "spiffe://evil.example/sae/alice",
        "spiffe://DQKD.example/sae/alice",
        "spiffe://dqkd.example.evil/sae/alice",
        "spiffe://dqkd.example:1/sae/a",
    ] {
        let result = identify(&leaf(&[uri], &[], Some("alice")), &rules(&[Spiffe, Cn]));
        assert!(matches!(result, Err(IdentityError::ForeignTrustDomain(_))), "{uri}: {result:?}");
    }
}

#[test]
fn a_second_uri_of_any_scheme_is_refused() {
    for second in ["spiffe://dqkd.example/kme/b", "https://b.example/", "urn:uuid:f81d4fae", "SPIFFE:x"] {
        for uris in [["spiffe://dqkd.example/sae/a", second], [second, "spiffe://dqkd.example/sae/a"]] {
            let der = leaf(&uris, &[], Some("a"));
            for sources in [&[Spiffe][..], &[Cn], &[Spiffe, Cn]] {
                assert_eq!(identify(&der, &rules(sources)), Err(IdentityError::SeveralUris), "{uris:?}");
            }
        }
    }
    // Where SPIFFE is not read, other URIs do not matter.
    let der = leaf(&["https://a.example/", "https://b.example/"], &[], Some("a"));
    assert_eq!(identify(&der, &rules(&[Cn])), Ok(Identity::Sae(sae("a"))));
    assert_eq!(identify(&der, &rules(&[Spiffe, Cn])), Err(IdentityError::SeveralUris));
}

#[test]
fn kmes_pool_servers_and_operators_need_their_key_usages() {
    for (uri, right, wrong) in [
        ("kme/site-a", &[ServerAuth, ClientAuth][..], &[&[][..], &[ServerAuth], &[ClientAuth]][..]),
        ("pool/pool-1", &[ServerAuth], &[&[], &[ClientAuth], &[ExtendedKeyUsagePurpose::Any]]),
        ("operator/olga", &[ClientAuth], &[&[], &[ServerAuth], &[ExtendedKeyUsagePurpose::Any]]),
    ] {
        let uri = format!("spiffe://dqkd.example/{uri}");
        assert!(identify(&leaf_for(right, &[&uri], &[], None), &rules(&[Spiffe])).is_ok(), "{uri}");
        for usages in wrong {
            let result = identify(&leaf_for(usages, &[&uri], &[], None), &rules(&[Spiffe]));
            assert!(matches!(result, Err(IdentityError::WrongUsage { .. })), "{uri} {usages:?}: {result:?}");
        }
    }
    // Foreign CAs leave it out for SAEs.
    let der = leaf_for(&[], &["spiffe://dqkd.example/sae/alice"], &[], None);
    assert_eq!(identify(&der, &rules(&[Spiffe])), Ok(Identity::Sae(sae("alice"))));
}

#[test]
fn names_with_characters_that_nobody_sees_are_refused_from_every_source() {
    for hidden in ["\u{202e}", "\u{200b}", "\u{2066}", "\u{feff}", "\u{a0}"] {
        let der = leaf(&[], &[], Some(&format!("al{hidden}ice")));
        assert_eq!(
            identify(&der, &rules(&[Cn])),
            Err(IdentityError::NotAnId(kme::IdError::Invisible)),
            "{hidden:?}"
        );
    }
    let der = leaf(&[], &["a\u{7}.example"], None);
    assert_eq!(identify(&der, &rules(&[Dns])), Err(IdentityError::NotAnId(kme::IdError::Invisible)));
}

#[test]
fn fallbacks_are_used_in_order_and_only_when_configured() {
    let der = leaf(&["https://not.spiffe/"], &["alice.example"], Some("alice"));
    let sae = |id: &str| Ok(Identity::Sae(sae(id)));
    assert_eq!(identify(&der, &rules(&[Spiffe])), Err(IdentityError::Nameless));
    assert_eq!(identify(&der, &rules(&[Spiffe, Cn])), sae("alice"));
    assert_eq!(identify(&der, &rules(&[Spiffe, Dns, Cn])), sae("alice.example"));
    assert_eq!(identify(&der, &rules(&[Cn, Dns])), sae("alice"));
    let fingerprint = identify(&der, &rules(&[Fingerprint])).unwrap();
    assert!(matches!(fingerprint, Identity::Sae(sae) if sae.id().as_str().len() == 64));
}

#[test]
fn ambiguous_names_are_no_names() {
    let two = leaf(&[], &["a.example", "b.example"], None);
    assert_eq!(identify(&two, &rules(&[Dns])), Err(IdentityError::Nameless));
    assert_eq!(identify(&two, &rules(&[Cn])), Err(IdentityError::Nameless));
    let blank = leaf(&[], &[], Some(" "));
    assert_eq!(identify(&blank, &rules(&[Cn])), Err(IdentityError::NotAnId(kme::IdError::Blank)));
}

#[test]
fn a_kme_certificate_never_becomes_an_sae_by_its_common_name() {
    let der = leaf(&["spiffe://dqkd.example/kme/site-a"], &["alice"], Some("alice"));
    let identity = identify(&der, &rules(&[Cn, Dns, Fingerprint])).unwrap();
    assert_eq!(identity, Identity::Kme(kme("site-a")));
    let client = ClientIdentity::new(Ok(identity));
    assert!(client.sae().is_none() && client.operator().is_none() && client.kme().is_some());
}

#[test]
fn garbage_is_malformed() {
    assert_eq!(identify(b"", &rules(&[Cn])), Err(IdentityError::Malformed));
    let mut der = leaf(&[], &[], Some("a"));
    der.push(0);
    assert_eq!(identify(&der, &rules(&[Cn])), Err(IdentityError::Malformed));
}
