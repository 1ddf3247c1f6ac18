//! A model of a key's life and of the peer protocol, searched exhaustively: every order of messages, losses,
//! repetitions, crashes, stops, voids and expiry, for two sites and a few keys.
//!
//! `docs/key-life.md` says what the model leaves out. `cargo test -p kme --test model -- --nocapture` prints
//! the number of states and how each mutant fails.

#![expect(
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and batches are numbered by the scope"
)]

mod rules;
mod scope;
mod state;
mod steps;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZero;

use stateright::{Checker, Expectation, Model};
use tokio::time::Instant;

use rules::{
    COPY_ENDS, COPY_LASTS, GONE, HANDED_ONCE, LEASE_LOST, NEVER_BACK, Protocol, RETRIEVED_ONCE, SAME_BYTES,
    TWIN,
};
use scope::{Kind, Mutant, Plan, Scope};
use state::{Site, State};
use steps::Step;

/// One block of the reserve. The slave at B and the master at A may each retrieve its keys.
const BLOCK: Scope = Scope {
    name: "a block of two keys, a slave at B and the master at A",
    plans: &[Plan { kind: Kind::Reserve, keys: 2, born: 0 }],
    entitled: &[Site::B, Site::A],
    life: 2,
    master_ttl: 2,
    skews: &[-1, 0, 1],
};

/// One block of the reserve for two slaves at B.
const TWO_SLAVES: Scope = Scope {
    name: "a block of two keys, two slaves at B",
    plans: &[Plan { kind: Kind::Reserve, keys: 2, born: 0 }],
    entitled: &[Site::B, Site::B],
    life: 2,
    master_ttl: 2,
    skews: &[-1, 0, 1],
};

/// A block of the reserve and a batch on demand, which share the memory of A and its crashes.
const TWO_BATCHES: Scope = Scope {
    name: "a block of two keys and a key on demand, one slave at B",
    plans: &[Plan { kind: Kind::Reserve, keys: 2, born: 0 }, Plan { kind: Kind::OnDemand, keys: 1, born: 0 }],
    entitled: &[Site::B],
    life: 2,
    master_ttl: 2,
    skews: &[0],
};

/// A longer block, of which a stop can return one or two keys.
const THREE_KEYS: Scope = Scope {
    name: "a block of three keys, one slave at B",
    plans: &[Plan { kind: Kind::Reserve, keys: 3, born: 0 }],
    entitled: &[Site::B],
    life: 2,
    master_ttl: 2,
    skews: &[-1, 0, 1],
};

/// A block of which the master's copies end before the keys expire. Leased keys may wait for a quarter of their
/// life.
const COPIES_END: Scope = Scope {
    name: "a block of two keys, a slave at B and the master at A, whose copies end early",
    plans: &[Plan { kind: Kind::Reserve, keys: 2, born: 0 }],
    entitled: &[Site::B, Site::A],
    life: 4,
    master_ttl: 1,
    skews: &[0],
};

/// Small, because it is searched once for each mutant.
const SMALL: Scope = Scope {
    name: "a block of two keys, one slave at B",
    plans: &[Plan { kind: Kind::Reserve, keys: 2, born: 0 }],
    entitled: &[Site::B],
    life: 2,
    master_ttl: 2,
    skews: &[-1, 0, 1],
};

/// What a finished search found.
struct Found {
    /// Different states.
    states: usize,
    violated: BTreeSet<&'static str>,
    reached: BTreeSet<&'static str>,
    not_reached: BTreeSet<&'static str>,
}

/// Visits every state of `scope`, breadth first.
fn search(scope: Scope, mutant: Option<Mutant>) -> Found {
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let checker = Protocol::new(scope, mutant).checker().threads(threads).spawn_bfs().join();
    // The search has no limit on states, depth or time, and continues as long as an invariant holds. So
    // "done" means that no state is left.
    assert!(checker.is_done(), "{}: the search was cut short", scope.name);
    let discovered: BTreeSet<&'static str> = checker.discoveries().into_keys().collect();
    let named = |expected: fn(&Expectation) -> bool| -> BTreeSet<&'static str> {
        let properties = checker.model().properties();
        properties.iter().filter(|property| expected(&property.expectation)).map(|one| one.name).collect()
    };
    let always = named(|expectation| matches!(expectation, Expectation::Always));
    let sometimes = named(|expectation| matches!(expectation, Expectation::Sometimes));
    let found = Found {
        states: checker.unique_state_count(),
        violated: &discovered & &always,
        reached: &discovered & &sometimes,
        not_reached: &sometimes - &discovered,
    };
    let who = mutant.map_or_else(|| scope.name.to_owned(), |mutant| format!("mutant {mutant:?}"));
    println!(
        "{who}: {} states, {} transitions, depth {}, {:.1} s; {} of {} invariants violated {:?}; {} situations reached",
        found.states,
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
        found.violated.len(),
        always.len(),
        found.violated,
        found.reached.len(),
    );
    // If all were violated, the library may have ended early.
    assert!(found.violated.len() < always.len(), "all invariants violated");
    found
}

fn keeps_every_invariant(scope: Scope) {
    let found = search(scope, None);
    assert_eq!(found.violated, BTreeSet::new(), "{}", scope.name);
    assert_eq!(found.not_reached, BTreeSet::new(), "{}: the search proves little without these", scope.name);
}

#[test]
fn a_block_keeps_every_invariant_whatever_is_lost_or_crashes() {
    keeps_every_invariant(BLOCK);
}

#[test]
fn two_slaves_keep_every_invariant_whatever_is_lost_or_crashes() {
    keeps_every_invariant(TWO_SLAVES);
}

#[test]
fn three_keys_keep_every_invariant_whatever_is_lost_or_crashes() {
    keeps_every_invariant(THREE_KEYS);
}

#[test]
fn two_batches_keep_every_invariant_whatever_is_lost_or_crashes() {
    keeps_every_invariant(TWO_BATCHES);
}

#[test]
fn copies_that_end_early_keep_every_invariant_whatever_is_lost_or_crashes() {
    keeps_every_invariant(COPIES_END);
}

#[test]
fn each_mutant_violates_exactly_the_invariants_that_it_should() {
    let expected: &[(Mutant, &[&str])] = &[
        (Mutant::HandOutBeforeAcknowledgement, &[TWIN, SAME_BYTES]),
        (Mutant::AcknowledgeBeforeCommit, &[TWIN, SAME_BYTES]),
        (Mutant::ForgetLease, &[HANDED_ONCE, LEASE_LOST]),
        (Mutant::ReturnWhileServing, &[HANDED_ONCE, LEASE_LOST]),
        (Mutant::ForgetTombstone, &[NEVER_BACK]),
        (Mutant::AnswerBeforeCommit, &[RETRIEVED_ONCE]),
        (Mutant::IgnoreDigest, &[SAME_BYTES]),
        (Mutant::ForgetExpiry, &[GONE]),
        (Mutant::NoMargin, &[TWIN]),
        (Mutant::VoidAtPeerFirst, &[TWIN]),
        (Mutant::VoidLeased, &[TWIN]),
        (Mutant::VoidExpired, &[TWIN]),
        (Mutant::VoidForgotten, &[TWIN]),
        (Mutant::ForgetHold, &[COPY_LASTS]),
        (Mutant::ForgetCopyEnd, &[COPY_ENDS]),
    ];
    let scope = |mutant| match mutant {
        Mutant::VoidForgotten | Mutant::ForgetHold | Mutant::ForgetCopyEnd => COPIES_END,
        _ => SMALL,
    };
    assert_eq!(search(SMALL, None).violated, BTreeSet::new(), "the protocol itself, in the same scope");
    for (mutant, violated) in expected {
        let violated: BTreeSet<&str> = violated.iter().copied().collect();
        assert_eq!(search(scope(*mutant), Some(*mutant)).violated, violated, "{mutant:?}");
        for name in violated {
            let (_, steps) = plain_search(&Protocol::new(scope(*mutant), Some(*mutant)), Some(name));
            assert!(!steps.is_empty(), "{mutant:?}");
            println!("    {name}: broken by {steps:?}");
        }
    }
}

/// The library keeps only hashes of states and has its own rules for stopping. The plain search keeps the
/// states.
#[test]
fn a_plain_search_finds_as_many_states() {
    let (states, _) = plain_search(&Protocol::new(SMALL, None), None);
    assert_eq!(search(SMALL, None).states, states);
}

/// Visits states breadth first: all of them, or until one breaks the invariant `until`. Returns how many it
/// found, and the shortest steps to the last.
fn plain_search(model: &Protocol, until: Option<&str>) -> (usize, Vec<Step>) {
    let properties = model.properties();
    let invariant = properties.iter().find(|property| Some(property.name) == until);
    let mut waiting: VecDeque<State> = model.init_states().into();
    let mut came_from: HashMap<State, Option<(State, Step)>> =
        waiting.iter().map(|start| (*start, None)).collect();
    let mut last = None;
    while let Some(state) = waiting.pop_front() {
        last = Some(state);
        if invariant.is_some_and(|invariant| !(invariant.condition)(model, &state)) {
            break;
        }
        for (step, next) in model.next_steps(&state) {
            came_from.entry(next).or_insert_with(|| {
                waiting.push_back(next);
                Some((state, step))
            });
        }
    }
    let mut steps = Vec::new();
    while let Some((before, step)) = last.and_then(|state| came_from.get(&state).copied().flatten()) {
        steps.push(step);
        last = Some(before);
    }
    steps.reverse();
    (came_from.len(), steps)
}
