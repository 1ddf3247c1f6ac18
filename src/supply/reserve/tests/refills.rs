//! Refills: where they go and how large they are; callers who wait while something is being made.

use super::super::pair::Begun;
use super::*;
use testkit::PATIENCE;

const BOUNDS: Bounds = Bounds { floor: 64, max: 100_000, block: 64, delivery: 256 };

/// A pair of which nothing is ready.
fn empty_pair() -> Arc<Pair> {
    let pair = Pair::new(alice(), bob());
    assert!(pair.set_stored(0, 0));
    pair
}

/// A pair that uses some 940 keys a second. The clock of tokio must be paused.
async fn use_much(pair: &Pair) {
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(1)).await;
        pair.note_demand(1000);
    }
}

/// Lets alice and bob use so many.
async fn make_busy(run: &Running) {
    tokio::time::pause();
    use_much(&run.reserve.pair(&alice(), &bob()).unwrap()).await;
    tokio::time::resume();
}

/// Their reserve of 256 keys, while all of them are being made for memory. Nothing refills it after that.
async fn while_it_refills(site: &Site) -> Running {
    let run = site.start(256, 256).await;
    run.hold();
    make_busy(&run).await;
    let filling = run.fill();
    assert_eq!(run.asked(1).await, [(256, Purpose::Ahead)]);
    filling.abort();
    let _ = filling.await;
    run
}

fn begin(pair: &Arc<Pair>, bounds: Bounds, has_room: bool) -> Option<Begun> {
    pair.begin_refill(bounds, has_room, false, START)
}

fn sizes(begun: &[Begun]) -> Vec<(usize, Purpose)> {
    begun.iter().map(|begun| (begun.keys(), begun.purpose)).collect()
}

#[tokio::test(start_paused = true)]
async fn while_memory_has_less_than_is_used_in_half_a_second_refills_go_there_and_then_to_the_store() {
    let pair = empty_pair();
    let idle: Vec<Begun> = begin(&pair, BOUNDS, true).into_iter().collect();
    assert_eq!(sizes(&idle), [(64, Purpose::Ready)], "nobody uses it");
    drop(idle);
    use_much(&pair).await;
    let full: Vec<Begun> = (0..2).filter_map(|_| begin(&pair, BOUNDS, false)).collect();
    assert_eq!(sizes(&full), [(256, Purpose::Ready); 2], "memory has no room");
    drop(full);
    let begun: Vec<Begun> = (0..4).filter_map(|_| begin(&pair, BOUNDS, true)).collect();
    let (memory, store) = ((256, Purpose::Ahead), (256, Purpose::Ready));
    assert_eq!(sizes(&begun), [memory, memory, store, store], "half a second is some 470 keys");
    drop(begun);
    assert_eq!(sizes(&[begin(&pair, BOUNDS, true).unwrap()]), [memory], "those came to nothing");
}

#[tokio::test(start_paused = true)]
async fn a_large_reserve_is_filled_in_deliveries_and_a_small_one_in_blocks() {
    let pair = empty_pair();
    let missing = |pair: &Arc<Pair>, floor: u64, missing: u64| {
        assert!(pair.set_stored(floor - missing, 0));
        begin(pair, Bounds { floor, ..BOUNDS }, true).map(|begun| begun.keys())
    };
    // A large one: four deliveries. It is full at first.
    for (floor, least) in [(1024, 256), (640, 64)] {
        assert_eq!(missing(&pair, floor, 0), None);
        assert_eq!(missing(&pair, floor, least - 1), None, "{floor}");
        assert_eq!(missing(&pair, floor, least).map(|keys| keys as u64), Some(least), "{floor}");
        // Once begun, it is filled to the brim: in full blocks as long as one is missing.
        assert_eq!(missing(&pair, floor, 400), Some(256), "{floor}");
        assert_eq!(missing(&pair, floor, 200), Some(192), "{floor}");
        assert_eq!(missing(&pair, floor, 10), Some(10), "{floor}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_replicas_share_the_store_each_makes_at_most_half_of_what_is_missing_at_once() {
    let begin = |pair: &Arc<Pair>, floor| pair.begin_refill(Bounds { floor, ..BOUNDS }, true, true, START);
    let all = |pair: &Arc<Pair>, floor| -> Vec<usize> {
        let begun: Vec<Begun> = std::iter::from_fn(|| begin(pair, floor)).collect();
        begun.iter().map(Begun::keys).collect()
    };
    let pair = empty_pair();
    assert_eq!(all(&pair, 1024), [256, 256], "another replica makes the rest");
    assert_eq!(all(&pair, 300), [128], "and full blocks");
    assert_eq!(all(&pair, 100), [64], "or one block");
    assert_eq!(all(&pair, 20), [20]);
    // What is made for callers who wait is theirs.
    let waited_for = pair.begin_batch(500, 256, START).unwrap();
    assert_eq!(all(&pair, 1024), [256, 256]);
    drop(waited_for);
    // Another has stored some meanwhile.
    let mut begun = begin(&pair, 1024).unwrap();
    assert!(pair.set_stored(1000, 0));
    pair.still_missing(&mut begun, Bounds { floor: 1024, ..BOUNDS }, START);
    assert_eq!(begun.keys(), 24);
    assert!(pair.set_stored(1024, 0));
    pair.still_missing(&mut begun, Bounds { floor: 1024, ..BOUNDS }, START);
    assert_eq!(begun.keys(), 0);
}

#[tokio::test]
async fn a_reserve_that_is_used_much_has_half_a_second_in_memory_if_there_is_room_and_the_rest_in_the_store()
{
    for (leased_max, in_memory) in [(10_000, 512), (0, 0)] {
        let site = Site { leased_max, ..Site::new() };
        let run = site.start(64, 4096).await;
        make_busy(&run).await;
        let _filling = run.fill();
        run.is_filled_to(4096).await;
        let levels = run.reserve.levels();
        assert_eq!((levels.leased, levels.stored), (in_memory, 4096 - in_memory), "room for {leased_max}");
        let asked = run.double.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 16, "in deliveries: {asked:?}");
        // What was made for memory is handed out without the store, and the rest as ever.
        run.double.is_up.store(false, Ordering::SeqCst);
        let at_once = run.reserve.take_ready(&alice(), &bob(), 100, &Demands::default());
        assert_eq!(at_once.map(|keys| keys.len()), (in_memory > 0).then_some(100));
        let mut seen = HashSet::new();
        while let Ok(keys) = run.take(100).await {
            assert!(ids(&keys).into_iter().all(|id| seen.insert(id)), "a key twice");
        }
        assert!(seen.len() >= 3900, "{}", seen.len());
    }
}

#[tokio::test]
async fn callers_wait_for_what_is_being_made_for_memory_and_no_more_is_made_than_they_need() {
    let site = Site::new();
    let run = site.start(256, 256).await;
    run.hold();
    make_busy(&run).await;
    let _filling = run.fill();
    assert_eq!(run.asked(1).await, [(256, Purpose::Ahead)]);
    let callers = async { tokio::join!(run.take(100), run.take(100), run.take(56)) };
    let release = async {
        while run.reserve.levels().waited_for < 256 {
            tokio::task::yield_now().await;
        }
        run.let_one_be_made();
    };
    let all = async { tokio::join!(callers, release) };
    let ((one, two, three), ()) = timeout(PATIENCE, all).await.expect("somebody waits for ever");
    let all: HashSet<KeyId> = [one, two, three].into_iter().flat_map(|keys| ids(&keys.unwrap())).collect();
    assert_eq!(all.len(), 256);
    let waiting = |asked: &[(usize, Purpose)]| asked.iter().any(|(_, purpose)| *purpose == Purpose::Waiting);
    assert!(!waiting(&run.double.asked.lock().unwrap()), "{:?}", run.double.asked);
}

#[tokio::test]
async fn a_caller_whose_batch_is_slow_takes_keys_of_another_and_those_of_the_slow_one_are_for_the_next() {
    let site = Site::new();
    let run = site.start(0, 4096).await;
    run.hold();
    let pair = run.reserve.pair(&alice(), &bob()).unwrap();
    let waits = run.take(100);
    let another = async {
        assert_eq!(run.asked(1).await, [(100, Purpose::Waiting)]);
        // As if a lease had brought them.
        let maker = Arc::clone(&run.double);
        let made = maker.deliver(&alice(), &bob(), 64, Purpose::Ahead).await;
        pair.push(made);
        tokio::task::yield_now().await;
        let made = maker.deliver(&alice(), &bob(), 64, Purpose::Ahead).await;
        pair.push(made);
    };
    let (keys, ()) = timeout(PATIENCE, async { tokio::join!(waits, another) }).await.unwrap();
    let mut seen: HashSet<KeyId> = ids(&keys.unwrap()).into_iter().collect();
    assert_eq!(seen.len(), 100);
    run.let_one_be_made();
    run.has_at_least(128).await;
    for id in ids(&run.take(128).await.unwrap()) {
        assert!(seen.insert(id), "{id} twice");
    }
    assert_eq!(run.double.asked.lock().unwrap().len(), 1, "nothing else was made");
}

#[tokio::test]
async fn a_batch_that_fails_wakes_those_who_wait_and_each_gets_an_error_of_its_own_batch() {
    let site = Site::new();
    let run = while_it_refills(&site).await;
    let callers = async { tokio::join!(run.take(10), run.take(20), run.take(30)) };
    let fail = async {
        while run.reserve.levels().waited_for < 60 {
            tokio::task::yield_now().await;
        }
        run.double.refuses.store(true, Ordering::SeqCst);
        // The refill that they wait for, then one batch for the first, then one for the second.
        for calls in 2..=3 {
            run.let_one_be_made();
            run.asked(calls).await;
        }
        run.let_one_be_made();
        run.asked(4).await;
        run.double.refuses.store(false, Ordering::SeqCst);
        run.let_one_be_made();
    };
    let all = async { tokio::join!(callers, fail) };
    let ((one, two, three), ()) = timeout(PATIENCE, all).await.expect("somebody waits for ever");
    for failed in [one, two] {
        assert!(matches!(failed, Err(SupplyError::PeerUnavailable(_))), "{failed:?}");
    }
    assert_eq!(three.unwrap().len(), 30);
    let asked = run.double.asked.lock().unwrap().clone();
    let waiting = |keys| (keys, Purpose::Waiting);
    assert_eq!(asked[1..], [waiting(60), waiting(50), waiting(30)], "for all who wait at that moment");
}

#[tokio::test]
async fn what_is_made_for_memory_while_the_reserve_closes_is_given_back() {
    for master_refetch in [true, false] {
        let site = Site { master_refetch, ..Site::new() };
        let run = while_it_refills(&site).await;
        let other: SaeId = "dave".parse().unwrap();
        let none = Demands::default();
        let waits = run.take_for(&other, 40, &none);
        let close = async {
            assert_eq!(run.asked(2).await[1], (40, Purpose::Waiting));
            run.reserve.close().await;
            run.double.gate.add_permits(2);
        };
        let all = async { tokio::join!(waits, close) };
        let (refused, ()) = timeout(PATIENCE, all).await.expect("somebody waits for ever");
        assert!(matches!(refused, Err(SupplyError::Busy)), "{refused:?}");
        run.reserve.parts.tasks.close();
        run.reserve.parts.tasks.wait().await;
        let ready = async |master: &SaeId| run.store.ready_count(pair_of(master, &bob())).await.unwrap();
        assert_eq!((ready(&alice()).await, ready(&other).await), (256, 40), "refetch {master_refetch}");
        assert_eq!(run.reserve.levels().leased, 0);
    }
}
