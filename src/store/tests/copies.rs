//! The master's copies at its own site, and how long what is known of a batch is kept.

use super::*;

/// Leased keys may wait so long for their hand-out.
const HOLD: Duration = kme::life::HOLD;
const TTL: Duration = Duration::from_mins(5);

/// A millisecond less.
fn just_before(time: Duration) -> Duration {
    time.saturating_sub(Duration::from_millis(1))
}

fn bob() -> Recipient {
    Recipient { party: to_sae("bob"), kme: kme("site-b") }
}

async fn lease(store: &Store, master_ttl: Duration) -> LeasedBlock {
    let pair = ReadyPair { master: &sae("alice"), recipient: &bob() };
    let mut leased = store.lease(pair, 1, master_ttl).await.unwrap();
    leased.pop().unwrap()
}

async fn count(store: &Store) -> u64 {
    store.ready_count(ReadyPair { master: &sae("alice"), recipient: &bob() }).await.unwrap()
}

fn by_alice() -> Ask {
    Ask::by("alice").path(to_sae("bob"))
}

async fn sweep(store: &Store) {
    while store.sweep(100).await.unwrap().any() {}
}

/// Somebody with write access makes everything live longer.
async fn prolong(site: &Site) {
    let text = "UPDATE records SET expires_at_ms = expires_at_ms + 25920000000";
    sqlx::query(text).execute(&mut *site.sql().await).await.unwrap();
}

#[tokio::test]
async fn the_master_gets_its_copy_until_it_ends_and_a_slave_of_the_same_site_until_expiry() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(3).ordered(START.plus(TTL)).stored(&store).await;
    let ids = sample.ids();
    site.clock.advance(just_before(TTL));
    by_alice().gets(&store, &ids[..1]).await;
    site.clock.advance(Duration::from_millis(1));
    by_alice().finds_nothing(&store, &ids[1..2]).await;
    by_alice().until_expiry().finds_nothing(&store, &ids[..1]).await;
    sweep(&store).await;
    Ask::by("bob").gets(&store, &ids).await;
}

#[tokio::test]
async fn a_key_that_only_the_ended_copy_would_need_is_erased() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(2).ordered(START.plus(TTL)).stored(&store).await;
    let ids = sample.ids();
    Ask::by("bob").gets(&store, &ids[..1]).await;
    sweep(&store).await;
    assert_eq!(counts(&store).await.keys, 2, "alice may still retrieve both");
    site.clock.advance(TTL);
    sweep(&store).await;
    assert_eq!(counts(&store).await.keys, 1);
    Ask::by("bob").gets(&store, &ids[1..]).await;
    assert_eq!(counts(&store).await, Counts { batches: 1, keys: 0 }, "nobody may retrieve it now");
}

#[tokio::test]
async fn what_the_master_alone_may_retrieve_goes_when_its_copies_end() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(2).for_others().ordered(START.plus(TTL)).stored(&store).await;
    let longer = Sample::to_bob(2).for_others().ordered(START.plus(2 * HOUR)).stored(&store).await;
    site.clock.advance(just_before(TTL));
    sweep(&store).await;
    by_alice().gets(&store, &sample.ids()[..1]).await;
    site.clock.advance(Duration::from_millis(1));
    sweep(&store).await;
    assert_eq!(counts(&store).await, Counts { batches: 1, keys: 2 });
    site.clock.advance(HOUR.saturating_sub(TTL));
    by_alice().finds_nothing(&store, &longer.ids()).await;
    sweep(&store).await;
    assert_eq!(counts(&store).await, Counts::default(), "no copy lives longer than its key");
}

#[tokio::test]
async fn copies_of_leased_keys_end_some_time_after_their_last_hand_out_whatever_a_column_says() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(3).ready(&store, true).await;
    Sample::to_bob(2).of("dave").ready(&store, true).await;
    site.clock.advance(TTL);
    lease(&store, TTL).await;
    site.clock.advance(just_before(HOLD + TTL));
    sweep(&store).await;
    by_alice().gets(&store, &sample.ids()[..1]).await;
    prolong(&site).await;
    site.clock.advance(Duration::from_millis(1));
    sweep(&store).await;
    assert_eq!(counts(&store).await.batches, 2);
    by_alice().finds_nothing(&store, &sample.ids()[1..]).await;
}

#[tokio::test]
async fn a_leased_batch_goes_with_its_copies_and_one_that_was_never_leased_when_its_time_is_over() {
    let site = site!();
    let store = site.open().await;
    for refetch in [true, false] {
        Sample::to_bob(3).ready(&store, refetch).await;
        lease(&store, TTL).await;
    }
    Sample::to_bob(3).ready(&store, true).await;
    sweep(&store).await;
    assert_eq!(counts(&store).await.batches, 3);
    site.clock.advance(HOLD + TTL);
    sweep(&store).await;
    assert_eq!((counts(&store).await.batches, count(&store).await), (1, 3));
    site.clock.advance(HALF.saturating_sub(HOLD + TTL));
    sweep(&store).await;
    assert_eq!(counts(&store).await, Counts::default());
}

#[tokio::test]
async fn what_is_leased_again_has_copies_anew_and_the_end_of_the_others_stays() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(4).ready(&store, true).await;
    let ids = sample.ids();
    let leased = lease(&store, Duration::from_mins(1)).await;
    site.clock.advance(HOLD);
    give_back(&store, leased, &ids[2..]).await;
    assert_eq!(count(&store).await, 2);
    by_alice().gets(&store, &ids[..1]).await;
    site.clock.advance(Duration::from_mins(1));
    sweep(&store).await;
    assert_eq!((counts(&store).await, count(&store).await), (Counts { batches: 1, keys: 2 }, 2));
    lease(&store, TTL).await;
    by_alice().finds_nothing(&store, &ids[1..2]).await;
    site.clock.advance(just_before(HOLD + TTL));
    by_alice().gets(&store, &ids[2..]).await;
}

#[tokio::test]
async fn a_batch_that_the_store_has_forgotten_is_not_voided_as_if_it_had_never_been() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(2).ready(&store, true).await;
    lease(&store, Duration::ZERO).await;
    site.clock.advance(HOLD);
    sweep(&store).await;
    assert_eq!(counts(&store).await, Counts::default());
    let (source, end) = (&sample.source, START.plus(HOUR));
    let outcome = store.void_unless_leased(source, sample.batch_id, START, end).await.unwrap();
    assert_eq!(outcome, ReadyVoid::InUse, "bob may still retrieve its keys");
}

#[tokio::test]
async fn what_is_given_back_after_its_batch_was_forgotten_is_stored_anew_for_the_same_parties() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(3).ready(&store, true).await;
    let leased = lease(&store, Duration::ZERO).await;
    site.clock.advance(HOLD);
    sweep(&store).await;
    give_back(&store, leased, &sample.ids()[1..]).await;
    assert_eq!(count(&store).await, 2);
    let again = lease(&store, TTL).await;
    let ids: HashSet<KeyId> = again.keys.iter().map(|key| key.id).collect();
    assert_eq!((again.batch_id, ids), (sample.batch_id, sample.ids()[1..].iter().copied().collect()));
    by_alice().finds_nothing(&store, &sample.ids()[..1]).await;
    by_alice().gets(&store, &sample.ids()[1..]).await;
}

#[tokio::test]
async fn a_voided_batch_is_known_until_it_expires() {
    let site = site!();
    let store = site.open().await;
    let sample = Sample::to_bob(2).for_others().ordered(START.plus(TTL)).stored(&store).await;
    store.void(&sample.source, sample.batch_id, &[], START.plus(HOUR)).await.unwrap();
    site.clock.advance(just_before(HOUR));
    sweep(&store).await;
    assert_eq!(counts(&store).await, Counts { batches: 1, keys: 0 });
    assert_eq!(sample.insert(&store).await.unwrap(), Inserted::Voided);
    site.clock.advance(Duration::from_millis(1));
    sweep(&store).await;
    assert_eq!(counts(&store).await, Counts::default());
}
