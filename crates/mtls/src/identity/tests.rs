use rcgen::{CertificateParams, DnType, KeyPair, SanType, string::Ia5String};

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
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
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
    assert_eq!(of("SPIFFE://DQKD.example/pool/pool-1"), Ok(Identity::Pool("pool-1".parse().unwrap())));
    assert_eq!(of("spiffe://dqkd.example/operator/olga"), Ok(Identity::Operator("olga".to_owned())));
    let spaced = Identity::Sae(sae("sae 1/é"));
    assert_eq!(of("spiffe://dqkd.example/sae/sae%201%2F%C3%A9"), Ok(spaced));
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
        "spiffe://dqkd.example/sae/%ff",
        "spiffe://dqkd.example/sae/%0a",
    ] {
        let result = identify(&leaf(&[uri], &[], Some("alice")), &rules(&[Spiffe, Cn]));
        assert!(matches!(result, Err(IdentityError::UnknownForm(_))), "{uri}: {result:?}");
    }
    for uri in [
        "spiffe://evil.example/sae/alice",
        "spiffe://dqkd.example.evil/sae/alice",
        "spiffe://dqkd.example:1/sae/a",
    ] {
        let result = identify(&leaf(&[uri], &[], Some("alice")), &rules(&[Spiffe, Cn]));
        assert!(matches!(result, Err(IdentityError::ForeignTrustDomain(_))), "{uri}: {result:?}");
    }
}

#[test]
fn two_spiffe_uris_are_refused() {
    let der = leaf(&["spiffe://dqkd.example/sae/a", "spiffe://dqkd.example/kme/b"], &[], None);
    assert_eq!(identify(&der, &rules(&[Spiffe])), Err(IdentityError::SeveralUris));
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
    assert_eq!(identify(&blank, &rules(&[Cn])), Err(IdentityError::Nameless));
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
