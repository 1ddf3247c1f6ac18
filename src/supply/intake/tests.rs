//! Tests of a push's times. The tests of the peer listener cover the other rules.

use kme::{KeyId, OsRandom, PoolSetId, Seed};

use super::*;

const NOW: Timestamp = Timestamp::from_ms(1_795_392_000_000);
const SKEW: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_hours(1);

fn pushed(created_at: Timestamp, expires_at: Timestamp) -> BatchMetadata {
    BatchMetadata {
        batch_id: BatchId::draw(&OsRandom).unwrap(),
        suite: blast::SUITE.to_owned(),
        pool_set: AnnouncedSet {
            id: PoolSetId::draw(&OsRandom).unwrap(),
            pools: Vec::new(),
            words: 1 << 14,
            expires_at,
        },
        seed: Seed::draw(&OsRandom).unwrap(),
        mask_seed: Seed::draw(&OsRandom).unwrap(),
        words_per_pool: 180,
        key_bytes: 32,
        key_ids: KeyId::draw_batch(1, &OsRandom).unwrap(),
        master: "alice".parse().unwrap(),
        recipients: vec![Recipient {
            party: Party::Sae("bob".parse().unwrap()),
            kme: "site-b".parse().unwrap(),
        }],
        created_at,
        expires_at,
        confirm: blast::Confirm::from_bytes([0; 16]),
    }
}

fn judged(created_at: Timestamp, expires_at: Timestamp) -> Result<usize, String> {
    let name = |id: &str| -> KmeId { id.parse().unwrap() };
    let saes = [("alice", "site-a"), ("bob", "site-b")];
    let saes = saes.map(|(sae, home)| (sae.parse().unwrap(), name(home)));
    let directory = Directory::new(name("site-b"), [name("site-a")], saes).unwrap();
    let rules = IntakeRules {
        limits: KeyLimits {
            size_bits: 256,
            min_size_bits: 8,
            max_size_bits: 65_536,
            max_per_request: 128,
            max_stored_per_pair: 4096,
            max_additional_saes: 8,
        },
        clock_skew_max: SKEW,
    };
    let (source, batch) = (name("site-a"), pushed(created_at, expires_at));
    let key_ttl_max = 2 * HOUR;
    let checked =
        Checked { rules: &rules, key_ttl_max, directory: &directory, source: &source, batch: &batch };
    checked.entitled_here(NOW).map(|entitled| entitled.len()).map_err(|error| error.to_string())
}

#[test]
fn clocks_may_differ_by_the_allowed_skew_in_both_directions_and_no_further() {
    for created_at in [NOW.minus(SKEW), NOW, NOW.plus(SKEW)] {
        assert_eq!(judged(created_at, created_at.plus(HOUR)), Ok(1));
    }
    let more = SKEW + Duration::from_millis(1);
    for created_at in [NOW.minus(more), NOW.plus(more)] {
        let refused = judged(created_at, created_at.plus(HOUR)).unwrap_err();
        assert!(refused.contains("the clocks differ"), "{refused}");
    }
}

#[test]
fn a_batch_that_has_ended_or_would_live_too_long_is_refused() {
    assert!(judged(NOW, NOW).unwrap_err().contains("expired"));
    assert!(judged(NOW, NOW.plus(2 * HOUR)).is_ok());
    let refused = judged(NOW, NOW.plus(2 * HOUR + SKEW)).unwrap_err();
    assert_eq!(
        refused,
        "these keys would live 7230 s (keys.ttl at KME site-a); at KME site-b they may live 7200 s \
         (limits.kme.key_ttl_max)"
    );
}
