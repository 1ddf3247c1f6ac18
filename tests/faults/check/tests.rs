//! For every invariant: histories that violate it, which the judge finds, and similar valid ones, which it
//! accepts.

use super::*;
use crate::history::{Caller, Slave};

const TTL_MS: i64 = 1_000_000;
const RULES: Rules = Rules { ttl_ms: TTL_MS, slack_ms: 100, drained: false };
const ALICE: (&str, usize) = ("alice", 0);
const BOB: (&str, usize) = ("bob", 1);
const CAROL: (&str, usize) = ("carol", 1);

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn sae(name: &str) -> Party {
    Party::Sae(name.into())
}

fn seen(number: u128) -> Seen {
    Seen { id: id(number), digest: [u8::try_from(number).unwrap(); 32], bits: 256, expires_ms: None }
}

fn answer(status: u16, keys: &[Seen]) -> Outcome {
    let is_fine = status == 200;
    Outcome::Answer(SeenAnswer {
        status,
        retry_after: status == 503,
        message: (!is_fine).then(|| "why".to_owned()),
        keys: is_fine.then(|| keys.to_vec()),
        counts: None,
    })
}

/// At `at_ms`, for 10 ms.
fn event(at_ms: i64, who: (&str, usize), ask: Ask, outcome: Outcome) -> Event {
    let caller = Caller { sae: who.0.into(), site: who.1 };
    Event { start_ms: at_ms, end_ms: at_ms + 10, caller, ask, outcome }
}

/// Alice gets `keys` for `slaves`.
fn enc_for(at_ms: i64, slaves: &[Slave], keys: &[Seen]) -> Event {
    let ask = Ask::Enc { slaves: slaves.to_vec(), number: keys.len(), bits: 256 };
    event(at_ms, ALICE, ask, answer(200, keys))
}

fn enc(at_ms: i64, keys: &[Seen]) -> Event {
    enc_for(at_ms, &[Slave { party: sae("bob"), site: 1 }], keys)
}

fn dec(at_ms: i64, who: (&str, usize), numbers: &[u128], outcome: Outcome) -> Event {
    let path = if who == ALICE { sae("bob") } else { sae("alice") };
    event(at_ms, who, Ask::Dec { path, ids: numbers.iter().copied().map(id).collect() }, outcome)
}

fn found(events: &[Event]) -> Vec<Invariant> {
    found_with(events, RULES)
}

fn found_with(events: &[Event], rules: Rules) -> Vec<Invariant> {
    check(events, rules).into_iter().map(|violation| violation.invariant).collect()
}

#[test]
fn an_honest_history_passes() {
    let events = [
        enc(0, &[seen(1), seen(2)]),
        dec(20, CAROL, &[1], answer(401, &[])),
        dec(40, BOB, &[1, 9], answer(400, &[])),
        dec(60, BOB, &[2, 1], answer(200, &[seen(2), seen(1)])),
        dec(80, BOB, &[1], answer(400, &[])),
        dec(100, ALICE, &[1, 2], answer(200, &[seen(1), seen(2)])),
        dec(120, BOB, &[1], answer(503, &[])),
    ];
    assert_eq!(found_with(&events, Rules { drained: true, ..RULES }), []);
}

#[test]
fn an_id_or_a_key_that_is_handed_out_twice_is_found() {
    assert_eq!(found(&[enc(0, &[seen(1)]), enc(20, &[seen(1)])]), [Invariant::HandedOutAtMostOnce]);
    let same_bytes = Seen { id: id(2), ..seen(1) };
    assert_eq!(
        found(&[enc(0, &[seen(1)]), enc(20, std::slice::from_ref(&same_bytes))]),
        [Invariant::HandedOutAtMostOnce]
    );
    assert_eq!(found(&[enc(0, &[seen(1), same_bytes])]), [Invariant::HandedOutAtMostOnce]);
}

#[test]
fn other_bytes_under_the_same_id_are_found() {
    let other = Seen { digest: [77; 32], ..seen(1) };
    for who in [BOB, ALICE] {
        let events = [enc(0, &[seen(1)]), dec(20, who, &[1], answer(200, std::slice::from_ref(&other)))];
        assert_eq!(found(&events), [Invariant::SameIdSameBytes]);
    }
}

#[test]
fn a_second_retrieval_by_the_same_holder_is_found() {
    let once = dec(20, BOB, &[1], answer(200, &[seen(1)]));
    let again = dec(40, BOB, &[1], answer(200, &[seen(1)]));
    assert_eq!(found(&[enc(0, &[seen(1)]), once, again]), [Invariant::RetrievedAtMostOnce]);
    // A key for a site is for one of its SAEs.
    let for_site = enc_for(0, &[Slave { party: Party::Kme(1), site: 1 }], &[seen(1)]);
    let bob = dec(20, BOB, &[1], answer(200, &[seen(1)]));
    let carol = dec(40, CAROL, &[1], answer(200, &[seen(1)]));
    assert_eq!(found(&[for_site, bob, carol]), [Invariant::RetrievedAtMostOnce]);
    // Two slaves have one retrieval each.
    let slaves = [Slave { party: sae("bob"), site: 1 }, Slave { party: sae("carol"), site: 1 }];
    let bob = dec(20, BOB, &[1], answer(200, &[seen(1)]));
    let carol = dec(40, CAROL, &[1], answer(200, &[seen(1)]));
    assert_eq!(found(&[enc_for(0, &slaves, &[seen(1)]), bob, carol]), []);
}

#[test]
fn an_answered_key_that_is_not_there_is_found() {
    let lost = [enc(0, &[seen(1)]), dec(20, BOB, &[1], answer(400, &[]))];
    assert_eq!(found(&lost), [Invariant::AnsweredIsRetrievable]);
    let refused = [enc(0, &[seen(1)]), dec(20, BOB, &[1], answer(401, &[]))];
    assert_eq!(found(&refused), [Invariant::AnsweredIsRetrievable]);
    // An earlier exchange without an answer may have used up the key; a later one may not.
    let without = |at_ms| dec(at_ms, BOB, &[1], Outcome::Lost);
    assert_eq!(found(&[enc(0, &[seen(1)]), without(20), dec(40, BOB, &[1], answer(400, &[]))]), []);
    let after = [enc(0, &[seen(1)]), dec(20, BOB, &[1], answer(400, &[])), without(40)];
    assert_eq!(found(&after), [Invariant::AnsweredIsRetrievable]);
    let not_sent = dec(20, BOB, &[1], Outcome::NotSent);
    let events = [enc(0, &[seen(1)]), not_sent, dec(40, BOB, &[1], answer(400, &[]))];
    assert_eq!(found(&events), [Invariant::AnsweredIsRetrievable]);
    // Nor may the retrieval of another holder.
    let master = dec(20, ALICE, &[1], answer(200, &[seen(1)]));
    let events = [enc(0, &[seen(1)]), master, dec(40, BOB, &[1], answer(400, &[]))];
    assert_eq!(found(&events), [Invariant::AnsweredIsRetrievable]);
}

#[test]
fn a_refused_or_impossible_retrieval_that_used_something_up_is_found() {
    for (ids, outcome) in [
        (&[1][..], answer(503, &[])),
        (&[1, 9], answer(400, &[])),
        (&[1, 9], Outcome::Lost),
        (&[1, 2], answer(401, &[])),
    ] {
        let other = Slave { party: sae("carol"), site: 1 };
        let events = [
            enc(0, &[seen(1)]),
            enc_for(0, &[other], &[seen(2)]),
            dec(20, BOB, ids, outcome),
            dec(40, BOB, &[1], answer(400, &[])),
        ];
        assert_eq!(found(&events), [Invariant::AnsweredIsRetrievable], "{ids:?}");
    }
}

#[test]
fn a_key_that_nobody_got_in_the_end_is_found() {
    let rules = Rules { drained: true, ..RULES };
    let made = enc(0, &[seen(1)]);
    let bob = dec(20, BOB, &[1], answer(200, &[seen(1)]));
    assert_eq!(found_with(&[made.clone(), bob.clone()], rules), [Invariant::AnsweredIsRetrievable]);
    let alice = dec(40, ALICE, &[1], answer(200, &[seen(1)]));
    assert_eq!(found_with(&[made, bob, alice], rules), []);
}

#[test]
fn a_stranger_who_gets_a_key_or_another_answer_than_401_is_found() {
    let got = [enc(0, &[seen(1)]), dec(20, CAROL, &[1], answer(200, &[seen(1)]))];
    assert_eq!(found(&got), [Invariant::StrangersGet401]);
    let denied = [enc(0, &[seen(1)]), dec(20, CAROL, &[1], answer(400, &[]))];
    assert_eq!(found(&denied), [Invariant::StrangersGet401]);
    let with_unknown = [enc(0, &[seen(1)]), dec(20, CAROL, &[9, 1], answer(400, &[]))];
    assert_eq!(found(&with_unknown), [Invariant::StrangersGet401]);
    // Once its holder has retrieved it, the key is as unknown as any other.
    let bob = dec(20, BOB, &[1], answer(200, &[seen(1)]));
    assert_eq!(found(&[enc(0, &[seen(1)]), bob, dec(40, CAROL, &[1], answer(400, &[]))]), []);
}

#[test]
fn a_partial_or_padded_container_is_found() {
    let made = enc(0, &[seen(1), seen(2)]);
    for keys in [&[seen(1)][..], &[seen(2), seen(1)], &[], &[seen(1), seen(2), seen(1)]] {
        let events = [made.clone(), dec(20, BOB, &[1, 2], answer(200, keys))];
        assert_eq!(found(&events), [Invariant::AllOrNothing], "{keys:?}");
    }
    let ask = |number, bits| Ask::Enc { slaves: vec![Slave { party: sae("bob"), site: 1 }], number, bits };
    for (number, bits) in [(2, 256), (1, 128)] {
        let events = [event(0, ALICE, ask(number, bits), answer(200, &[seen(1)]))];
        assert_eq!(found(&events), [Invariant::AllOrNothing]);
    }
    let garbled = SeenAnswer { status: 200, retry_after: false, message: None, keys: None, counts: None };
    let events = [event(0, ALICE, ask(1, 256), Outcome::Answer(garbled))];
    assert_eq!(found(&events), [Invariant::AllOrNothing]);
    let unknown = Seen { id: id(9), ..seen(9) };
    let events = [made, dec(20, BOB, &[9], answer(200, &[unknown]))];
    assert_eq!(found(&events), [Invariant::AllOrNothing]);
}

#[test]
fn a_key_that_outlives_its_expiry_is_found_and_one_that_goes_before() {
    let got = |at_ms| dec(at_ms, BOB, &[1], answer(200, &[seen(1)]));
    let gone = |at_ms| dec(at_ms, BOB, &[1], answer(400, &[]));
    assert_eq!(found(&[enc(0, &[seen(1)]), got(TTL_MS + 200)]), [Invariant::ExpiredIsGone]);
    assert_eq!(found(&[enc(0, &[seen(1)]), got(TTL_MS - 200)]), []);
    assert_eq!(found(&[enc(0, &[seen(1)]), gone(TTL_MS + 200)]), []);
    // The expiry in the answer counts.
    let told = Seen { expires_ms: Some(500), ..seen(1) };
    assert_eq!(found(&[enc(0, std::slice::from_ref(&told)), got(700)]), [Invariant::ExpiredIsGone]);
    assert_eq!(found(&[enc(0, std::slice::from_ref(&told)), gone(700)]), []);
    assert_eq!(found(&[enc(0, &[told]), gone(300)]), [Invariant::AnsweredIsRetrievable]);
}

/// A site hands out a key that it made ahead up to the middle of the key's life. An answer without the expiry does
/// not tell such a key from a fresh one.
#[test]
fn a_key_of_unknown_expiry_may_have_been_made_ahead_and_go_after_half_a_life() {
    let gone = |at_ms| found(&[enc(0, &[seen(1)]), dec(at_ms, BOB, &[1], answer(400, &[]))]);
    assert_eq!(gone(TTL_MS / 2 + 200), []);
    assert_eq!(gone(TTL_MS / 2 - 200), [Invariant::AnsweredIsRetrievable]);
}

#[test]
fn a_refusal_without_message_or_retry_after_is_found() {
    let with = |retry_after, message: Option<&str>| {
        let message = message.map(str::to_owned);
        let answer = SeenAnswer { status: 503, retry_after, message, keys: None, counts: None };
        found(&[enc(0, &[seen(1)]), dec(20, BOB, &[1], Outcome::Answer(answer))])
    };
    assert_eq!(with(true, Some("why")), []);
    assert_eq!(with(false, Some("why")), [Invariant::RefusalsAreWellFormed]);
    assert_eq!(with(true, None), [Invariant::RefusalsAreWellFormed]);
    assert_eq!(with(true, Some("")), [Invariant::RefusalsAreWellFormed]);
}

#[test]
fn an_undocumented_status_is_found() {
    let order = || Ask::Enc { slaves: vec![Slave { party: sae("bob"), site: 1 }], number: 1, bits: 256 };
    for status in [500, 502, 504, 404, 400, 401] {
        let events = [event(0, ALICE, order(), answer(status, &[]))];
        assert_eq!(found(&events), [Invariant::OnlyDocumentedStatuses], "{status}");
    }
    for status in [500, 502, 504, 404, 403] {
        let events = [enc(0, &[seen(1)]), dec(20, BOB, &[1], answer(status, &[]))];
        assert_eq!(found(&events), [Invariant::OnlyDocumentedStatuses], "{status}");
    }
}

#[test]
fn a_status_that_promises_more_than_it_may_is_found() {
    let with = |counts| {
        let answer = SeenAnswer { status: 200, retry_after: false, message: None, keys: None, counts };
        found(&[event(0, ALICE, Ask::Status, Outcome::Answer(answer))])
    };
    assert_eq!(with(Some((4096, 4096))), []);
    assert_eq!(with(Some((4097, 4096))), [Invariant::AllOrNothing]);
    assert_eq!(with(None), [Invariant::AllOrNothing]);
}

#[test]
fn service_that_does_not_come_back_and_memory_that_grows_are_found() {
    let recovery = |took| {
        let mut found = Vec::new();
        check_recovery(took, 1000, &mut found);
        found.len()
    };
    assert_eq!([recovery(Some(1000)), recovery(Some(1001)), recovery(None)], [0, 1, 1]);
    let mut found = Vec::new();
    check_memory(&[("a".to_owned(), 100), ("b".to_owned(), 101)], 100, &mut found);
    assert_eq!(found.len(), 1);
    assert!(found[0].text.starts_with("b has 101"));
}
