use kme::{ManualClock, OsRandom};

use super::*;

const WORDS: usize = MIN_POOL_WORDS;
const POOL_BYTES: u64 = 8 * WORDS as u64;

fn limits() -> VaultLimits {
    VaultLimits {
        memory_max_bytes: 4 * POOL_BYTES,
        owner_memory_max_bytes: 3 * POOL_BYTES,
        pools_max: 16,
        words_min: MIN_POOL_WORDS,
        words_max: 1 << 16,
        ttl_max: Duration::from_mins(10),
        readers_max: 4,
    }
}

fn vault_with(limits: VaultLimits) -> (Arc<PoolVault>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::starting_at(Timestamp::from_ms(1_000_000)));
    (Arc::new(PoolVault::new(limits, clock.clone(), Arc::new(OsRandom))), clock)
}

fn kme(name: &str) -> KmeId {
    name.parse().unwrap()
}

fn request(readers: &[&str]) -> PoolRequest {
    PoolRequest {
        words: WORDS,
        readers: readers.iter().map(|name| kme(name)).collect(),
        ttl: Duration::from_mins(1),
    }
}

fn read_all(mut open: OpenPool) -> Vec<u8> {
    let mut out = vec![0; open.len_bytes() + 1];
    let copied = open.copy_next(&mut out).unwrap();
    out.truncate(copied);
    out
}

#[test]
fn every_reader_gets_the_same_random_bytes_and_is_counted() {
    let (vault, _) = vault_with(limits());
    let made = vault.create(&kme("a"), request(&["a", "b"])).unwrap();
    assert_eq!(made.entropy_source, "os");
    assert_eq!(made.expires_at, Timestamp::from_ms(1_060_000));
    let bytes = read_all(vault.open(made.pool_id, &kme("a")).unwrap());
    assert_eq!(bytes.len() as u64, POOL_BYTES);
    assert!(bytes.chunks(64).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
    assert!(bytes == read_all(vault.open(made.pool_id, &kme("b")).unwrap()));
    drop(vault.open(made.pool_id, &kme("b")).unwrap());
    let count = |reader: &str, started, completed| ReaderReads { reader: kme(reader), started, completed };
    assert_eq!(vault.reads(made.pool_id, &kme("a")).unwrap().readers, [count("a", 1, 1), count("b", 2, 1)]);
    let other = vault.create(&kme("a"), request(&["a"])).unwrap();
    assert!(bytes != read_all(vault.open(other.pool_id, &kme("a")).unwrap()));
}

#[test]
fn unknown_foreign_and_expired_pools_look_alike() {
    let (vault, clock) = vault_with(limits());
    let made = vault.create(&kme("a"), request(&["b"])).unwrap();
    let not_found = |result: Result<(), VaultError>| assert!(matches!(result, Err(VaultError::NotFound)));
    let unknown = PoolId::draw(&OsRandom).unwrap();
    not_found(vault.open(unknown, &kme("b")).map(drop));
    not_found(vault.open(made.pool_id, &kme("stranger")).map(drop));
    not_found(vault.open(made.pool_id, &kme("a")).map(drop));
    not_found(vault.reads(made.pool_id, &kme("b")).map(drop));
    not_found(vault.delete(made.pool_id, &kme("b")));
    clock.advance(Duration::from_mins(1));
    not_found(vault.open(made.pool_id, &kme("b")).map(drop));
    not_found(vault.reads(made.pool_id, &kme("a")).map(drop));
    not_found(vault.delete(made.pool_id, &kme("a")));
    assert_eq!(vault.used_bytes(), 0);
}

#[test]
fn quotas_in_all_and_for_each_owner_hold_and_are_given_back() {
    let (vault, clock) = vault_with(limits());
    let first = vault.create(&kme("a"), request(&["a"])).unwrap();
    vault.create(&kme("a"), request(&["a"])).unwrap();
    vault.create(&kme("a"), request(&["a"])).unwrap();
    assert!(matches!(vault.create(&kme("a"), request(&["a"])), Err(VaultError::Full(_))));
    vault.create(&kme("b"), request(&["b"])).unwrap();
    assert!(matches!(vault.create(&kme("b"), request(&["b"])), Err(VaultError::Full(_))));
    vault.delete(first.pool_id, &kme("a")).unwrap();
    vault.create(&kme("b"), request(&["b"])).unwrap();
    clock.advance(Duration::from_mins(1));
    vault.sweep();
    assert_eq!((vault.used_bytes(), vault.pool_count()), (0, 0));
}

#[test]
fn a_reservation_that_is_never_filled_gives_everything_back() {
    let (vault, _) = vault_with(VaultLimits { pools_max: 1, ..limits() });
    let reserved = vault.reserve(&kme("a"), request(&["a"])).unwrap();
    assert!(matches!(vault.reserve(&kme("a"), request(&["a"])), Err(VaultError::Full(_))));
    drop(reserved);
    assert_eq!(vault.used_bytes(), 0);
    vault.create(&kme("a"), request(&["a"])).unwrap();
    assert!(matches!(vault.create(&kme("a"), request(&["a"])), Err(VaultError::Full(_))));
}

#[test]
fn sizes_lives_and_readers_out_of_range_are_refused() {
    let (vault, _) = vault_with(limits());
    let refused = |request: PoolRequest| {
        assert!(matches!(vault.create(&kme("a"), request), Err(VaultError::Refused(_))));
    };
    for words in [0, 1, WORDS - 1, WORDS + 1, WORDS / 2, 1 << 17, usize::MAX] {
        refused(PoolRequest { words, ..request(&["a"]) });
    }
    refused(PoolRequest { ttl: Duration::ZERO, ..request(&["a"]) });
    refused(PoolRequest { ttl: Duration::from_secs(601), ..request(&["a"]) });
    refused(request(&[]));
    refused(request(&["a", "b", "c", "d", "e"]));
    vault.create(&kme("a"), request(&["a", "b", "c", "d", "d"])).unwrap();
}

#[test]
fn a_download_outlives_its_pool_but_not_its_deadline() {
    let (vault, clock) = vault_with(limits());
    let made = vault.create(&kme("a"), request(&["a"])).unwrap();
    let mut open = vault.open(made.pool_id, &kme("a")).unwrap();
    let mut chunk = [0; 1024];
    assert_eq!(open.copy_next(&mut chunk), Ok(1024));
    vault.delete(made.pool_id, &kme("a")).unwrap();
    assert_eq!(open.copy_next(&mut chunk), Ok(1024));
    assert_eq!(vault.used_bytes(), POOL_BYTES, "the download still holds the bytes");
    clock.advance(STREAM_LIFE_MAX);
    vault.sweep();
    assert_eq!(vault.used_bytes(), 0, "the deadline frees them though the download is still open");
    assert_eq!(open.copy_next(&mut chunk), Err(DownloadOverdue));
}

#[test]
fn a_download_past_its_deadline_ends_even_without_a_sweep() {
    let (vault, clock) = vault_with(limits());
    let made = vault.create(&kme("a"), request(&["a"])).unwrap();
    let mut open = vault.open(made.pool_id, &kme("a")).unwrap();
    clock.advance(STREAM_LIFE_MAX);
    assert_eq!(open.copy_next(&mut [0; 8]), Err(DownloadOverdue));
}

#[test]
fn a_failing_random_source_makes_no_pool() {
    struct Broken;
    impl Random for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), RandomError> {
            Err(std::io::Error::other("broken").into())
        }
    }
    let clock = Arc::new(ManualClock::starting_at(Timestamp::from_ms(0)));
    let vault = Arc::new(PoolVault::new(limits(), clock, Arc::new(Broken)));
    assert!(matches!(vault.create(&kme("a"), request(&["a"])), Err(VaultError::Random(_))));
    assert_eq!((vault.used_bytes(), vault.pool_count()), (0, 0));
}
