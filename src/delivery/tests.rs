//! Who is admitted, what a path names, which requests are refused before anything is made.

use kme::{FreshKey, IdError, Key, Party};

use super::testing::{
    KEY_TTL, Mood, Placed, SAES, TestSite, TestSites, directory_of, rules, sae, to_kme, to_sae,
};
use super::*;
use crate::supply::SupplyError;

fn admitted(site: &TestSite, id: &str) -> Result<Caller, DeliveryError> {
    site.delivery.admit(&testkit::authenticated_sae(id))
}

fn caller(site: &TestSite, id: &str) -> Caller {
    admitted(site, id).unwrap()
}

/// Only the keys, without what is known about each.
fn bare(made: Result<Vec<FreshKey>, DeliveryError>) -> Result<Vec<Key>, DeliveryError> {
    made.map(|keys| keys.into_iter().map(|fresh| fresh.key).collect())
}

async fn get(site: &TestSite, id: &str, path: &str) -> Result<Vec<Key>, DeliveryError> {
    bare(site.delivery.get_key(&caller(site, id), path, &KeyRequest::default()).await)
}

async fn get_by_id(site: &TestSite, id: &str, path: &str, key: &Key) -> Result<Vec<Key>, DeliveryError> {
    site.delivery.get_key_with_ids(&caller(site, id), path, &[key.id.to_string()]).await
}

#[tokio::test]
async fn admission_follows_the_certificate_and_the_directory() {
    // Seen from site-a. (SAE of the certificate, admitted by "chain", admitted by "listed")
    let table = [
        ("alice", true, true),
        ("dave", true, true),
        ("bob", false, false),
        ("erin", false, false),
        ("zoe", true, false),
        ("site-a", false, false),
        ("site-b", false, false),
        ("ALICE", true, false),
    ];
    for (admission, column) in [(Admission::Chain, 1), (Admission::Listed, 2)] {
        let sites = TestSites::new(DeliveryRules { admission, ..rules() }).await;
        for (id, by_chain, by_list) in table {
            let expected = if column == 1 { by_chain } else { by_list };
            match admitted(&sites.a, id) {
                Ok(caller) => assert!(expected && caller.sae().as_str() == id, "{admission:?} {id}"),
                Err(DeliveryError::NotAdmitted) => assert!(!expected, "{admission:?} {id}"),
                Err(other) => panic!("{admission:?} {id}: {other}"),
            }
        }
    }
}

#[tokio::test]
async fn a_reloaded_directory_counts_from_the_next_request_on() {
    let sites = TestSites::new(DeliveryRules { admission: Admission::Listed, ..rules() }).await;
    let before = caller(&sites.a, "alice");
    let without_bob_and_dave: Vec<_> =
        SAES.iter().copied().filter(|(id, _)| !["bob", "dave"].contains(id)).collect();
    sites.a.directory.store(Arc::new(directory_of("site-a", &without_bob_and_dave)));
    assert!(matches!(admitted(&sites.a, "dave"), Err(DeliveryError::NotAdmitted)));
    let refused = sites.a.delivery.status(&caller(&sites.a, "alice"), "bob").await.unwrap_err();
    assert!(matches!(refused, DeliveryError::Refused(Refusal::UnknownPeer)));
    // A request that was admitted before still sees the old directory.
    assert_eq!(sites.a.delivery.status(&before, "bob").await.unwrap().target.as_str(), "site-b");
}

#[tokio::test]
async fn a_path_names_a_listed_sae_or_a_kme_and_nobody_else() {
    let sites = TestSites::new(rules()).await;
    for (path, expected) in [
        ("bob", to_sae("bob", "site-b")),
        ("dave", to_sae("dave", "site-a")),
        ("site-b", to_kme("site-b")),
        ("site-a", to_kme("site-a")),
        ("b/o b%é", to_sae("b/o b%é", "site-b")),
    ] {
        get(&sites.a, "alice", path).await.unwrap();
        let placed = sites.a.source.orders().pop().unwrap();
        let expected =
            Placed { master: "alice".into(), recipients: vec![expected], number: 1, key_bytes: 32 };
        assert_eq!(placed, expected, "{path}");
    }
    let before = sites.a.marks().await;
    for (path, expected) in [
        ("nobody", Refusal::UnknownPeer),
        ("Bob", Refusal::UnknownPeer),
        ("site-z", Refusal::UnknownPeer),
        ("alice", Refusal::PeerIsCaller),
        ("", Refusal::InvalidPeer(IdError::Blank)),
        (" ", Refusal::InvalidPeer(IdError::Blank)),
        ("bob\n", Refusal::InvalidPeer(IdError::Invisible)),
        (&"b".repeat(513), Refusal::InvalidPeer(IdError::TooLong)),
    ] {
        let refused = get(&sites.a, "alice", path).await.unwrap_err();
        assert!(
            matches!(&refused, DeliveryError::Refused(refusal) if *refusal == expected),
            "{path}: {refused}"
        );
        let refused = sites.a.delivery.status(&caller(&sites.a, "alice"), path).await.unwrap_err();
        assert!(
            matches!(&refused, DeliveryError::Refused(refusal) if *refusal == expected),
            "{path}: {refused}"
        );
    }
    assert_eq!(sites.a.marks().await, before, "nothing was made");
}

#[tokio::test]
async fn sizes_and_numbers_outside_of_the_limits_are_refused_before_anything_is_made() {
    let sites = TestSites::new(rules()).await;
    let out_of_range = Refusal::SizeOutOfRange { min: 64, max: 4096 };
    let ask = async |number: Option<i128>, size_bits: Option<i128>| {
        let request = KeyRequest { number, size_bits, ..KeyRequest::default() };
        sites.a.delivery.get_key(&caller(&sites.a, "alice"), "bob", &request).await
    };
    for (size, expected) in [
        (0, &out_of_range),
        (56, &out_of_range),
        (4104, &out_of_range),
        (-8, &out_of_range),
        (1 << 40, &out_of_range),
        (i128::MAX - 7, &out_of_range),
        (i128::MIN, &out_of_range),
        (257, &Refusal::SizeNotOctets),
        (1, &Refusal::SizeNotOctets),
        (-1, &Refusal::SizeNotOctets),
        (4097, &Refusal::SizeNotOctets),
        (i128::MAX, &Refusal::SizeNotOctets),
    ] {
        let refused = ask(None, Some(size)).await.unwrap_err();
        assert!(
            matches!(&refused, DeliveryError::Refused(refusal) if refusal == expected),
            "{size}: {refused}"
        );
    }
    for number in [0, -1, 9, 1 << 64, i128::MAX, i128::MIN] {
        let refused = ask(Some(number), None).await.unwrap_err();
        let expected = Refusal::NumberOutOfRange { max: 8 };
        assert!(
            matches!(&refused, DeliveryError::Refused(refusal) if *refusal == expected),
            "{number}: {refused}"
        );
    }
    assert_eq!(sites.a.marks().await, (0, 0), "nothing was made");
    for (number, size) in [(1, 64), (8, 4096), (3, 256)] {
        let keys = ask(Some(number), Some(size)).await.unwrap();
        assert_eq!(i128::try_from(keys.len()).unwrap(), number);
        assert!(keys.iter().all(|fresh| i128::try_from(fresh.key.material.len_bytes()).unwrap() * 8 == size));
    }
}

#[tokio::test]
async fn additional_slaves_are_other_listed_saes_each_once() {
    let sites = TestSites::new(rules()).await;
    let ask = async |additional: &[&str]| {
        let additional_slaves = Some(additional.iter().map(|&id| id.to_owned()).collect());
        let request = KeyRequest { additional_slaves, ..KeyRequest::default() };
        sites.a.delivery.get_key(&caller(&sites.a, "alice"), "bob", &request).await
    };
    for (additional, expected) in [
        (&["carol", "dave", "erin", "b/o b%é"][..], Refusal::TooManyAdditionalSlaves { max: 3 }),
        (&["carol", "nobody"], Refusal::UnknownAdditionalSlave),
        (&["site-b"], Refusal::UnknownAdditionalSlave),
        (&["carol", " "], Refusal::InvalidAdditionalSlave(IdError::Blank)),
        (&["carol", "carol"], Refusal::DuplicateAdditionalSlave),
        (&["carol", "bob"], Refusal::AdditionalSlaveIsSlave),
        (&["alice"], Refusal::AdditionalSlaveIsCaller),
    ] {
        let refused = ask(additional).await.unwrap_err();
        assert!(
            matches!(&refused, DeliveryError::Refused(refusal) if *refusal == expected),
            "{additional:?}: {refused}"
        );
    }
    assert_eq!(sites.a.marks().await, (0, 0), "nothing was made");
    ask(&["dave", "carol", "erin"]).await.unwrap();
    let recipients = sites.a.source.orders().pop().unwrap().recipients;
    let expected = [("bob", "site-b"), ("dave", "site-a"), ("carol", "site-b"), ("erin", "site-c")];
    assert_eq!(recipients, expected.map(|(id, home)| to_sae(id, home)));
}

#[tokio::test]
async fn keys_of_another_number_or_length_than_asked_for_are_never_delivered() {
    let sites = TestSites::new(rules()).await;
    for mood in [Mood::OneTooFew, Mood::OneByteShort] {
        sites.a.source.set_mood(mood);
        let request = KeyRequest { number: Some(2), ..KeyRequest::default() };
        let refused = sites.a.delivery.get_key(&caller(&sites.a, "alice"), "bob", &request).await;
        assert!(matches!(refused, Err(DeliveryError::Supply(SupplyError::Internal))), "{refused:?}");
    }
}

#[tokio::test]
async fn each_party_of_a_key_retrieves_it_once_at_its_own_site() {
    let sites = TestSites::new(rules()).await;
    let made = get(&sites.a, "alice", "bob").await.unwrap();
    for (site, id, path) in [(&sites.b, "bob", "alice"), (&sites.a, "alice", "bob")] {
        let got = get_by_id(site, id, path, &made[0]).await.unwrap();
        assert!(got[0].id == made[0].id && got[0].material.ct_eq(&made[0].material), "{id}");
        let again = get_by_id(site, id, path, &made[0]).await;
        assert!(matches!(again, Err(DeliveryError::KeysNotFound)), "{id}: {again:?}");
    }
}

#[tokio::test]
async fn nobody_retrieves_a_key_that_does_not_name_it_and_the_owner_still_does() {
    let sites = TestSites::new(rules()).await;
    let for_bob = get(&sites.a, "alice", "bob").await.unwrap();
    let for_site = get(&sites.a, "alice", "site-b").await.unwrap();
    // zoe is unlisted, but admitted by the chain of her certificate.
    for (site, id, path) in [
        (&sites.b, "carol", "alice"),
        (&sites.b, "zoe", "alice"),
        (&sites.b, "zoe", "site-a"),
        (&sites.a, "dave", "bob"),
    ] {
        let refused = get_by_id(site, id, path, &for_bob[0]).await;
        assert!(matches!(refused, Err(DeliveryError::NotEntitled)), "{id}: {refused:?}");
    }
    get_by_id(&sites.b, "bob", "alice", &for_bob[0]).await.unwrap();
    get_by_id(&sites.b, "zoe", "site-a", &for_site[0]).await.unwrap();
    let late = get_by_id(&sites.b, "bob", "alice", &for_site[0]).await;
    assert!(matches!(late, Err(DeliveryError::KeysNotFound)), "{late:?}");
}

#[tokio::test]
async fn the_path_of_a_retrieval_names_the_other_holder_or_its_kme() {
    let sites = TestSites::new(rules()).await;
    let keys = get(&sites.a, "alice", "bob").await.unwrap();
    for path in ["dave", "carol", "erin", "site-b", "site-c", "nobody"] {
        let refused = get_by_id(&sites.b, "bob", path, &keys[0]).await;
        assert!(matches!(refused, Err(DeliveryError::KeysNotFound)), "{path}: {refused:?}");
    }
    let refused = get_by_id(&sites.b, "bob", "bob", &keys[0]).await;
    assert!(matches!(refused, Err(DeliveryError::Refused(Refusal::PeerIsCaller))), "{refused:?}");
    get_by_id(&sites.b, "bob", "site-a", &keys[0]).await.unwrap();
    // A master that only the chain admitted is listed nowhere; its keys are found under its name all the
    // same.
    let keys = get(&sites.a, "zoe", "bob").await.unwrap();
    get_by_id(&sites.b, "bob", "zoe", &keys[0]).await.unwrap();
}

#[tokio::test]
async fn an_expired_key_is_as_unknown_as_one_that_never_was() {
    let sites = TestSites::new(rules()).await;
    let keys = get(&sites.a, "alice", "bob").await.unwrap();
    sites.clock.advance(KEY_TTL);
    for id in ["bob", "carol"] {
        let refused = get_by_id(&sites.b, id, "alice", &keys[0]).await;
        assert!(matches!(refused, Err(DeliveryError::KeysNotFound)), "{id}: {refused:?}");
    }
}

#[tokio::test]
async fn a_site_may_let_an_sae_repeat_a_retrieval_for_a_while_or_until_expiry() {
    let window = RetrievalPolicy { replay_window: Duration::from_mins(1), ..RetrievalPolicy::STRICT };
    let sites = TestSites::new(DeliveryRules { retrieval: window, ..rules() }).await;
    let keys = get(&sites.a, "alice", "site-b").await.unwrap();
    get_by_id(&sites.b, "bob", "alice", &keys[0]).await.unwrap();
    get_by_id(&sites.b, "bob", "alice", &keys[0]).await.unwrap();
    assert!(get_by_id(&sites.b, "carol", "alice", &keys[0]).await.is_err(), "the window is bob's");
    sites.clock.advance(Duration::from_mins(1));
    assert!(get_by_id(&sites.b, "bob", "alice", &keys[0]).await.is_err());

    let always = RetrievalPolicy { mode: RetrievalMode::UntilExpiry, ..RetrievalPolicy::STRICT };
    let sites = TestSites::new(DeliveryRules { retrieval: always, ..rules() }).await;
    let keys = get(&sites.a, "alice", "bob").await.unwrap();
    for _ in 0..3 {
        get_by_id(&sites.b, "bob", "alice", &keys[0]).await.unwrap();
    }
    sites.clock.advance(KEY_TTL);
    assert!(get_by_id(&sites.b, "bob", "alice", &keys[0]).await.is_err());
}

#[tokio::test]
async fn status_never_promises_more_than_may_be_stored() {
    let sites = TestSites::new(rules()).await;
    for (deliverable, stored) in [(0, 0), (99, 99), (100, 100), (5_000, 100)] {
        sites.a.source.set_deliverable(deliverable);
        let status = sites.a.delivery.status(&caller(&sites.a, "alice"), "bob").await.unwrap();
        assert_eq!(status.stored, stored);
        assert_eq!((status.master, status.slave), (sae("alice"), Party::Sae(sae("bob"))));
    }
}
