use kme::{ManualClock, OsRandom};

use super::*;

const WORDS: usize = MIN_POOL_WORDS;
const POOL_BYTES: u64 = 8 * WORDS as u64;

fn limits() -> VaultLimits {
    VaultLimits {
        memory_max_bytes: 6 * POOL_BYTES,
        owner_memory_max_bytes: 6 * POOL_BYTES,
        pools_max: 16,
        words_min: MIN_POOL_WORDS,
        words_max: 1 << 16,
        ttl_max: Duration::from_mins(10),
        readers_max: 4,
        kmes: None,
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

/// Makes pools until it is refused; returns how many.
fn fill_up(vault: &Arc<PoolVault>, owner: &str) -> usize {
    let made = std::iter::from_fn(|| vault.create(&kme(owner), request(&[owner])).ok());
    made.take(1_000).count()
}

#[test]
fn one_owner_gets_half_of_the_memory_at_most_and_a_newcomer_always_finds_some() {
    let (vault, clock) = vault_with(limits());
    assert_eq!(fill_up(&vault, "a"), 3);
    assert!(matches!(vault.create(&kme("a"), request(&["a"])), Err(VaultError::Full(_))));
    assert!(fill_up(&vault, "b") >= 1);
    clock.advance(Duration::from_mins(1));
    vault.sweep();
    assert_eq!((vault.used_bytes(), vault.pool_count()), (0, 0));
    assert_eq!(fill_up(&vault, "b"), 3, "expired pools are given back");
}

#[test]
fn one_owner_gets_half_of_the_pools_at_most_and_no_more_than_its_own_memory() {
    let many = VaultLimits { memory_max_bytes: 1 << 30, owner_memory_max_bytes: 1 << 30, ..limits() };
    let (vault, _) = vault_with(many.clone());
    assert_eq!(fill_up(&vault, "a"), 8, "of 16");
    assert!(fill_up(&vault, "b") >= 3);
    assert!(fill_up(&vault, "c") >= 1);
    let (vault, _) = vault_with(VaultLimits { owner_memory_max_bytes: 2 * POOL_BYTES, ..many });
    assert_eq!(fill_up(&vault, "a"), 2);
}

#[test]
fn a_deleted_pool_counts_as_long_as_somebody_downloads_it() {
    let (vault, _) = vault_with(VaultLimits { pools_max: 2, ..limits() });
    let made = vault.create(&kme("a"), request(&["a"])).unwrap();
    let open = vault.open(made.pool_id, &kme("a")).unwrap();
    vault.delete(made.pool_id, &kme("a")).unwrap();
    assert_eq!((vault.pool_count(), vault.used_bytes()), (0, POOL_BYTES));
    assert!(matches!(vault.create(&kme("a"), request(&["a"])), Err(VaultError::Full(_))));
    drop(open);
    vault.create(&kme("a"), request(&["a"])).unwrap();
}

#[test]
fn one_reader_gets_half_of_the_downloads_at_most() {
    let (vault, _) = vault_with(limits());
    let made = vault.create(&kme("a"), request(&["a", "b"])).unwrap();
    let greedy: Vec<OpenPool> =
        std::iter::from_fn(|| vault.open(made.pool_id, &kme("b")).ok()).take(DOWNLOADS_MAX).collect();
    assert_eq!(greedy.len(), DOWNLOADS_MAX / 2);
    assert_eq!(vault.open_downloads(), DOWNLOADS_MAX / 2);
    drop(vault.open(made.pool_id, &kme("a")).unwrap());
    drop(greedy);
    assert_eq!(vault.open_downloads(), 0);
    vault.open(made.pool_id, &kme("b")).unwrap();
}

#[test]
fn a_download_that_makes_no_progress_ends_and_frees_its_pool() {
    let (vault, clock) = vault_with(limits());
    let made = vault.create(&kme("a"), request(&["a"])).unwrap();
    let (mut slow, mut stalled) =
        (vault.open(made.pool_id, &kme("a")).unwrap(), vault.open(made.pool_id, &kme("a")).unwrap());
    vault.delete(made.pool_id, &kme("a")).unwrap();
    let mut chunk = [0; 1024];
    assert_eq!(stalled.copy_next(&mut chunk), Ok(1024));
    for _ in 0..3 {
        clock.advance(DOWNLOAD_STALL_MAX / 2);
        vault.sweep();
        assert_eq!(slow.copy_next(&mut chunk), Ok(1024), "slow, but it goes on");
    }
    assert_eq!(vault.cut_downloads(), 1);
    assert_eq!(stalled.copy_next(&mut chunk), Err(DownloadOverdue));
    clock.advance(DOWNLOAD_STALL_MAX);
    assert_eq!(slow.copy_next(&mut chunk), Err(DownloadOverdue), "even without a sweep");
    assert_eq!(vault.used_bytes(), 0);
    assert_eq!(vault.cut_downloads(), 2);
}

#[test]
fn with_a_list_nobody_else_gets_in_and_no_other_reader_is_named() {
    let listed = Some(["a", "b"].map(kme).into());
    let (vault, _) = vault_with(VaultLimits { kmes: listed, ..limits() });
    vault.admit(&kme("a")).unwrap();
    let refused = vault.admit(&kme("mallory")).unwrap_err();
    assert!(refused.to_string().contains("KME mallory is not listed in [pool] kmes"), "{refused}");
    vault.create(&kme("a"), request(&["a", "b"])).unwrap();
    let refused = vault.create(&kme("a"), request(&["a", "mallory"])).unwrap_err();
    assert!(matches!(&refused, VaultError::Refused(text) if text.contains("mallory")), "{refused}");
    let (open_to_all, _) = vault_with(limits());
    open_to_all.admit(&kme("mallory")).unwrap();
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
    let steps = DOWNLOAD_LIFE_MAX.as_millis() / (DOWNLOAD_STALL_MAX / 2).as_millis();
    for step in 1..steps {
        clock.advance(DOWNLOAD_STALL_MAX / 2);
        assert_eq!(open.copy_next(&mut chunk), Ok(1024), "step {step}");
    }
    clock.advance(DOWNLOAD_STALL_MAX / 2);
    vault.sweep();
    assert_eq!(vault.used_bytes(), 0, "the deadline frees them though the download is still open");
    assert_eq!(open.copy_next(&mut chunk), Err(DownloadOverdue));
}

#[test]
fn a_download_past_its_deadline_ends_even_without_a_sweep() {
    let (vault, clock) = vault_with(limits());
    let made = vault.create(&kme("a"), request(&["a"])).unwrap();
    let mut open = vault.open(made.pool_id, &kme("a")).unwrap();
    clock.advance(DOWNLOAD_LIFE_MAX);
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
