//! The invariants, which must hold in every state, and the situations that a meaningful search must reach.

use stateright::{Model, Property};

use crate::scope::{Kind, Mutant, Plan, Scope};
use crate::state::{BATCHES_MAX, Batch, Content, NEVER, Row, Site, State};
use crate::steps::{self, Rules, Step};

pub(crate) const TWIN: &str = "handed out => durable twin";
pub(crate) const HANDED_ONCE: &str = "handed out at most once";
pub(crate) const RETRIEVED_ONCE: &str = "retrieved at most once per entitlement";
pub(crate) const SAME_BYTES: &str = "same ID => same bytes";
pub(crate) const GONE: &str = "expired => gone";
pub(crate) const NEVER_BACK: &str = "voided => never back";
pub(crate) const COPY_LASTS: &str = "handed out => the master can retrieve its copy for a while";
pub(crate) const COPY_ENDS: &str = "nobody retrieves the master's copy after its end";
pub(crate) const LEASE_LOST: &str = "leased in a crash => never ready again";

/// The protocol in a scope, ready to be searched.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) scope: Scope,
    pub(crate) mutant: Option<Mutant>,
    steps: Vec<Step>,
}

impl Protocol {
    pub(crate) fn new(scope: Scope, mutant: Option<Mutant>) -> Self {
        Self { scope, mutant, steps: steps::all(&scope, mutant) }
    }

    /// Whether `holds` for every batch that the scope makes.
    fn each(&self, state: &State, holds: impl Fn(&Batch, Plan) -> bool) -> bool {
        state.batches.iter().zip(self.scope.plans).all(|(batch, plan)| holds(batch, *plan))
    }

    fn some(&self, state: &State, holds: impl Fn(&Batch, Plan) -> bool) -> bool {
        !self.each(state, |batch, plan| !holds(batch, plan))
    }

    fn twins_are_there(&self, state: &State) -> bool {
        let ticks_at_b = state.ticks(Site::B);
        self.each(state, |batch, plan| {
            let expired = ticks_at_b >= i64::from(plan.born + self.scope.life);
            let there = batch.at_b.is_stored() && batch.void_at_b & batch.handed == 0;
            !batch.twinless && (batch.handed == 0 || expired || there)
        })
    }

    fn copies_are_there(&self, state: &State) -> bool {
        let has_master = self.scope.entitled.contains(&Site::A);
        self.each(state, |batch, _| {
            let there = batch.at_a.is_stored() && (batch.copy_ends == NEVER || state.clock < batch.copy_ends);
            !has_master || state.clock >= batch.owed_until || there
        })
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let start = |skew: &i8| State { batches: [Batch::UNMADE; BATCHES_MAX], clock: 0, skew: *skew };
        self.scope.skews.iter().map(start).collect()
    }

    fn actions(&self, _state: &State, actions: &mut Vec<Step>) {
        actions.extend_from_slice(&self.steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut next = *last;
        Rules { scope: &self.scope, mutant: self.mutant }.take(&mut next, step);
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = invariants();
        properties.extend(reached());
        if self.scope.plans.iter().any(|plan| plan.kind == Kind::OnDemand) {
            properties.push(Property::sometimes("a key made on demand is handed out", |model, state| {
                model.some(state, |batch, plan| plan.kind == Kind::OnDemand && batch.handed != 0)
            }));
        }
        if self.scope.forgets_early() {
            properties.push(Property::sometimes("A forgets a batch before it expires", |model, state| {
                model.some(state, |batch, plan| {
                    let is_live = state.clock < plan.born + model.scope.life;
                    is_live && batch.handed != 0 && batch.at_a == Row::Unknown
                })
            }));
            properties.push(Property::sometimes(
                "keys that waited too long are leased again",
                |model, state| {
                    model.some(state, |batch, plan| {
                        batch.handed != 0 && batch.leased != 0 && batch.leased_at > plan.born
                    })
                },
            ));
        }
        if self.scope.entitled.contains(&Site::A) {
            properties.push(Property::sometimes("a key is retrieved at A by its ID", |model, state| {
                model.some(state, |batch, plan| batch.answered & model.scope.all_held(plan, Site::A) != 0)
            }));
        }
        properties
    }
}

fn invariants() -> Vec<Property<Protocol>> {
    vec![
        Property::always(TWIN, Protocol::twins_are_there),
        Property::always(HANDED_ONCE, |model, state| model.each(state, |batch, _| batch.handed_again == 0)),
        Property::always(RETRIEVED_ONCE, |model, state| {
            model.each(state, |batch, _| batch.answered_again == 0)
        }),
        Property::always(SAME_BYTES, |model, state| {
            model.each(state, |batch, _| batch.genuine & batch.other == 0)
        }),
        Property::always(GONE, |model, state| model.each(state, |batch, _| !batch.late)),
        Property::always(COPY_LASTS, Protocol::copies_are_there),
        Property::always(COPY_ENDS, |model, state| model.each(state, |batch, _| !batch.stale)),
        Property::always(NEVER_BACK, |model, state| {
            model.each(state, |batch, _| !(batch.void_done && batch.at_b.is_stored()))
        }),
        Property::always(LEASE_LOST, |model, state| {
            model.each(state, |batch, _| batch.lost & (batch.leased | batch.ready) == 0)
        }),
    ]
}

/// Situations without which a search proves little.
fn reached() -> Vec<Property<Protocol>> {
    vec![
        Property::sometimes("a key is handed out and then retrieved at B", |model, state| {
            model.some(state, |batch, plan| {
                (0..plan.keys).any(|key| {
                    batch.handed >> key & 1 == 1 && batch.answered & model.scope.held(key, Site::B) != 0
                })
            })
        }),
        Property::sometimes("a batch is voided at B before it arrives", |model, state| {
            model.some(state, |batch, _| batch.at_b == Row::Tombstone)
        }),
        Property::sometimes("a batch is voided at B after it arrived", |model, state| {
            model.some(state, |batch, _| matches!(batch.at_b, Row::Voided(_)))
        }),
        Property::sometimes("a void keeps a retrieved key and erases its neighbour", |model, state| {
            model.some(state, |batch, plan| {
                batch.void_at_b != 0
                    && batch.void_at_b != plan.all()
                    && batch.used & model.scope.all_held(plan, Site::B) != 0
            })
        }),
        // Only a stop makes a ready row of some of the keys.
        Property::sometimes("a graceful stop returns the rest of a lease", |model, state| {
            model.some(state, |batch, plan| {
                batch.ready != 0 && batch.ready | batch.handed == plan.all() && batch.handed != 0
            })
        }),
        Property::sometimes("a crash takes leased keys away", |model, state| {
            model.some(state, |batch, _| batch.lost != 0 && batch.handed != 0)
        }),
        Property::sometimes("a retrieval is committed and its answer lost", |model, state| {
            model.some(state, |batch, _| batch.used & !batch.answering & !batch.answered != 0)
        }),
        Property::sometimes("A crashes before its commit and leaves orphans at B", |model, state| {
            model.some(state, |batch, _| {
                batch.at_b.is_stored() && batch.at_a == Row::Unknown && !batch.void_sent
            })
        }),
        Property::sometimes("other content is stored first under the ID", |model, state| {
            model.some(state, |batch, _| batch.at_b == Row::Stored(Content::Other))
        }),
        Property::sometimes("a commit of unknown outcome is voided at home", |model, state| {
            model.some(state, |batch, _| matches!(batch.at_a, Row::Voided(_)))
        }),
        Property::sometimes("a key expires at B that nobody fetched", |model, state| {
            model.some(state, |batch, _| {
                batch.handed != 0 && batch.answered == 0 && batch.at_b == Row::Unknown
            })
        }),
    ]
}
