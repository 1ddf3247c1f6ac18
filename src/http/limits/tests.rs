//! Buckets over a paused clock.

use super::*;
use crate::metrics::{encode, registry};

fn rate(per_second: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(per_second)
}

fn alice_has(limits: ClientLimits) -> LimitTable {
    LimitTable { listed: HashMap::from([("alice".to_owned(), limits)]), ..LimitTable::default() }
}

fn clients(limits: ClientLimits) -> Arc<Clients> {
    Clients::new("sae", alice_has(limits), 128, LimitMeter::default())
}

fn served(clients: &Clients, account: &Account) -> usize {
    std::iter::from_fn(|| clients.take_request(account).ok()).take(1000).count()
}

#[tokio::test(start_paused = true)]
async fn five_seconds_worth_may_come_at_once_then_the_rate_counts_and_others_are_not_concerned() {
    let clients = clients(ClientLimits { requests_per_second: rate(10), ..ClientLimits::default() });
    let alice = clients.account("alice");
    assert_eq!(served(&clients, &alice), 50);
    assert_eq!(served(&clients, &clients.account("bob")), 1000, "nobody limits bob");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(served(&clients, &alice), 20);
    let refused = clients.take_request(&alice).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_secs), ("limit_requests", Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_bucket_of_keys_holds_the_largest_request_and_the_answer_says_when_to_come_back() {
    let clients = clients(ClientLimits { keys_per_second: rate(2), ..ClientLimits::default() });
    let alice = clients.account("alice");
    clients.take_keys(&alice, 128).unwrap();
    let refused = clients.take_keys(&alice, 16).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_secs), ("limit_keys", Some(8)));
    tokio::time::advance(Duration::from_secs(7)).await;
    clients.take_keys(&alice, 16).unwrap_err();
    tokio::time::advance(Duration::from_secs(1)).await;
    clients.take_keys(&alice, 16).unwrap();
    // Refused for another reason elsewhere.
    clients.take_keys(&alice, 129).unwrap();
    clients.take_keys(&alice, 0).unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_connects_again_finds_its_bucket_as_it_was() {
    let clients = clients(ClientLimits { requests_per_second: rate(1), ..ClientLimits::default() });
    assert_eq!(served(&clients, &clients.account("alice")), 5);
    // New names tidy up those that nobody uses.
    for number in 0..10 {
        clients.account(&format!("stranger {number}"));
    }
    assert_eq!(served(&clients, &clients.account("alice")), 0);
    assert!(clients.accounts.lock().len() <= 3);
    tokio::time::advance(Duration::from_secs(6)).await;
    clients.account("stranger");
    assert!(!clients.accounts.lock().contains_key("alice"), "nothing is missing in it any more");
    assert_eq!(served(&clients, &clients.account("alice")), 5);
}

#[tokio::test(start_paused = true)]
async fn new_limits_count_at_once_and_unchanged_ones_leave_what_was_used() {
    let one = ClientLimits { requests_per_second: rate(1), ..ClientLimits::default() };
    let clients = clients(one);
    let alice = clients.account("alice");
    assert_eq!(served(&clients, &alice), 5);
    clients.set_limits(alice_has(one));
    assert_eq!(served(&clients, &alice), 0);
    clients.set_limits(alice_has(ClientLimits { requests_per_second: rate(4), ..one }));
    assert_eq!(served(&clients, &alice), 20);
    clients.set_limits(LimitTable::default());
    assert_eq!(served(&clients, &alice), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_metric_names_who_reached_which_limit() {
    let mut registry = registry();
    let limits = ClientLimits { keys_per_second: rate(1), ..ClientLimits::default() };
    let meter = LimitMeter::register(&mut registry);
    let clients = Clients::new("sae", alice_has(limits), 128, meter);
    let alice = clients.account("alice");
    clients.take_keys(&alice, 128).unwrap();
    clients.take_keys(&alice, 1).unwrap_err();
    let line = "dqkd_limited_total{listener=\"sae\",identity=\"alice\",limit=\"keys_per_second\"} 1\n";
    let text = encode(&registry).unwrap();
    assert!(text.contains(line), "{text}");
}
