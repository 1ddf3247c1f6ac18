//! The steps: which are possible in a state, and what each does.
//!
//! Each step is one commit, one message or one answer, so a crash can come between any two. The functions of
//! `kme::life` decide, as they do in the store.

use std::time::Duration;

use kme::life::{self, Claim, EarlierUse, Inserted, KeyAtVoid, Known, Role, Terms, Voiding};
use kme::{RetrievalMode, Timestamp};

use crate::scope::{Kind, Mutant, Plan, Scope};
use crate::state::{Batch, Content, HOLD_TICKS, NEVER, Row, Site, State, Work, bit, moment, retrieval};

/// The numbers are batch, key and entitled party, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A draws IDs, extracts, pushes.
    Make(usize),
    /// A push arrives at B, and B commits what it decides.
    PushArrives(usize, Content),
    /// B's acknowledgement arrives at A.
    AcknowledgementArrives(usize),
    /// A commits the batch.
    Commit(usize),
    /// A's commit fails.
    CommitFails(usize),
    /// A's commit succeeds, but A gets an error or no answer in time.
    CommitUnclear(usize),
    /// A stops waiting and retracts the batch.
    Retract(usize),
    /// A voids in its own database what it may have committed there.
    VoidAtHome(usize),
    /// A sends the void.
    SendVoid(usize),
    /// A void arrives at B, and B commits it.
    VoidArrives(usize),
    /// A's commit moves the keys of a ready row to memory.
    Lease(usize),
    /// The same commit, but A does not learn that it succeeded.
    LeaseUnclear(usize),
    /// A gives leased keys back that waited too long.
    GiveBack(usize),
    /// A hands out a key from memory.
    HandOut(usize, u8),
    /// A retrieval is decided and committed.
    Retrieve(usize, u8, u8),
    /// The answer to a retrieval is sent.
    Answer(usize, u8, u8),
    /// Expired rows are swept.
    Sweep(usize, Site),
    /// The process crashes and starts again.
    Crash(Site),
    /// A stops gracefully and starts again.
    Stop,
    /// Time passes.
    Tick,
    /// Only in a mutant: B acknowledges what it has not committed.
    AcknowledgeEarly(usize),
    /// Only in a mutant: the commit of a retrieval after its answer.
    CommitLate(usize, u8, u8),
}

/// All steps of `scope`. Most change nothing in most states.
pub(crate) fn all(scope: &Scope, mutant: Option<Mutant>) -> Vec<Step> {
    let mut steps = vec![Step::Crash(Site::A), Step::Crash(Site::B), Step::Stop, Step::Tick];
    for (b, plan) in scope.plans.iter().enumerate() {
        steps.extend([
            Step::Make(b),
            Step::PushArrives(b, Content::Genuine),
            Step::PushArrives(b, Content::Other),
            Step::AcknowledgementArrives(b),
            Step::Commit(b),
            Step::CommitFails(b),
            Step::CommitUnclear(b),
            Step::Retract(b),
            Step::VoidAtHome(b),
            Step::SendVoid(b),
            Step::VoidArrives(b),
            Step::Lease(b),
            Step::LeaseUnclear(b),
            Step::GiveBack(b),
            Step::Sweep(b, Site::A),
            Step::Sweep(b, Site::B),
        ]);
        if mutant == Some(Mutant::AcknowledgeBeforeCommit) {
            steps.push(Step::AcknowledgeEarly(b));
        }
        for key in 0..plan.keys {
            steps.push(Step::HandOut(b, key));
            for (_, entitled) in scope.entitled.iter().zip(0u8..) {
                steps.extend([Step::Retrieve(b, key, entitled), Step::Answer(b, key, entitled)]);
                if mutant == Some(Mutant::AnswerBeforeCommit) {
                    steps.push(Step::CommitLate(b, key, entitled));
                }
            }
        }
    }
    steps
}

/// The protocol, or a mutant of it, about to take a step.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) mutant: Option<Mutant>,
}

impl Rules<'_> {
    /// Takes `step`. Does nothing if it is not possible in `state`.
    pub(crate) fn take(self, state: &mut State, step: Step) {
        match step {
            Step::Crash(site) => self.crash(state, site),
            Step::Stop => self.stop(state),
            Step::Tick => state.clock += i8::from(state.clock < self.scope.last_tick()),
            Step::Make(b) => self.make(state, b),
            Step::PushArrives(b, content) => self.push_arrives(state, b, content),
            Step::HandOut(b, key) => self.hand_out(state, b, key),
            Step::Retrieve(b, key, entitled) => self.retrieve(state, b, key, entitled),
            Step::VoidAtHome(b) => self.void_at_home(state, b),
            Step::Lease(b) => self.lease(state, b, true),
            Step::LeaseUnclear(b) => self.lease(state, b, false),
            Step::GiveBack(b) => self.give_back_overdue(state, b),
            Step::Commit(b) | Step::CommitUnclear(b) => self.commit(state, b, step),
            Step::Sweep(b, site) => self.sweep(state, b, site),
            Step::AcknowledgeEarly(b) => {
                let made = state.batches[b].work != Work::Unmade;
                state.batches[b].acknowledged |= made;
            }
            Step::Answer(b, key, entitled) => {
                let batch = &mut state.batches[b];
                let held = retrieval(key, entitled);
                if batch.answering & held != 0 && self.mutant != Some(Mutant::AnswerBeforeCommit) {
                    batch.answering &= !held;
                    answered(batch, held);
                }
            }
            Step::CommitLate(b, key, entitled) => {
                let batch = &mut state.batches[b];
                let held = retrieval(key, entitled);
                batch.used |= batch.answering & held;
                batch.answering &= !held;
            }
            Step::AcknowledgementArrives(b)
            | Step::CommitFails(b)
            | Step::Retract(b)
            | Step::SendVoid(b)
            | Step::VoidArrives(b) => self.work(&mut state.batches[b], self.scope.plans[b], step),
        }
    }

    /// The steps that need one batch and no clock.
    fn work(self, batch: &mut Batch, plan: Plan, step: Step) {
        match step {
            Step::AcknowledgementArrives(_) if batch.acknowledged && batch.work == Work::Waiting => {
                batch.work = Work::Acknowledged;
            }
            Step::CommitFails(_) if self.may_commit(batch) => batch.work = Work::Doubtful,
            Step::Retract(_) if matches!(batch.work, Work::Waiting | Work::Acknowledged) => {
                batch.work = Work::Retracting;
            }
            Step::SendVoid(_) if batch.work == Work::Retracting => {
                batch.void_sent = true;
                batch.work = Work::Over;
            }
            Step::SendVoid(_)
                if batch.work == Work::Doubtful && self.mutant == Some(Mutant::VoidAtPeerFirst) =>
            {
                batch.void_sent = true;
                batch.work = Work::Over;
            }
            Step::VoidArrives(_) if batch.void_sent => self.void_arrives(batch, plan),
            _ => {}
        }
    }

    fn may_commit(self, batch: &Batch) -> bool {
        let early = self.mutant == Some(Mutant::HandOutBeforeAcknowledgement);
        batch.work == Work::Acknowledged || (early && batch.work == Work::Waiting)
    }

    fn commit(self, state: &mut State, b: usize, step: Step) {
        let (clock, plan) = (state.clock, self.scope.plans[b]);
        let batch = &mut state.batches[b];
        if !self.may_commit(batch) {
            return;
        }
        let is_clear = step == Step::Commit(b);
        batch.work = if is_clear { Work::Over } else { Work::Doubtful };
        if commit(batch, plan) && plan.kind == Kind::OnDemand {
            self.note_lease(batch, b, clock);
            batch.leased = if is_clear { plan.all() } else { 0 };
        }
    }

    /// A's commit that takes all ready keys; `is_clear`: A learns of it.
    fn lease(self, state: &mut State, b: usize, is_clear: bool) {
        let (clock, is_usable) = (state.clock, self.is_usable(state, b));
        let batch = &mut state.batches[b];
        if batch.ready == 0 || !batch.at_a.is_stored() || !is_usable {
            return;
        }
        self.note_lease(batch, b, clock);
        if is_clear {
            batch.leased |= batch.ready;
        }
        batch.ready = 0;
    }

    fn note_lease(self, batch: &mut Batch, b: usize, clock: i8) {
        batch.leased_at = clock;
        let leased_at = moment(i64::from(clock));
        let hand_out_until = life::hand_out_until(self.created_at(b), self.expires_at(b), leased_at);
        let master_ttl = moment(i64::from(self.scope.master_ttl)).since(moment(0));
        let end = life::copy_ends_at(hand_out_until, master_ttl);
        let end = ticks(end).min(i64::from(self.scope.last_tick()) + 1);
        batch.copy_ends = batch.copy_ends.max(i8::try_from(end).unwrap_or(i8::MAX));
    }

    /// Whether the first half of the keys' life lasts.
    fn is_usable(self, state: &State, b: usize) -> bool {
        state.now(Site::A) < life::usable_until(self.created_at(b), self.expires_at(b))
    }

    fn give_back_overdue(self, state: &mut State, b: usize) {
        let batch = &state.batches[b];
        if batch.leased != 0 && state.clock >= batch.leased_at + HOLD_TICKS {
            self.give_back(state, b);
        }
    }

    fn give_back(self, state: &mut State, b: usize) {
        let (is_usable, plan) = (self.is_usable(state, b), self.scope.plans[b]);
        let batch = &mut state.batches[b];
        if is_usable && batch.at_a == Row::Unknown {
            // Forgotten meanwhile: a new record of these keys alone.
            batch.at_a = Row::Stored(Content::Genuine);
            (batch.void_at_a, batch.copy_ends) = (plan.all() & !batch.leased, NEVER);
        }
        if is_usable && batch.at_a.is_stored() {
            batch.ready |= batch.leased;
        }
        batch.leased = 0;
    }

    fn make(self, state: &mut State, b: usize) {
        let due = state.clock == self.scope.plans[b].born;
        let batch = &mut state.batches[b];
        if due && batch.work == Work::Unmade {
            batch.work = Work::Waiting;
        }
    }

    fn created_at(self, b: usize) -> Timestamp {
        moment(i64::from(self.scope.plans[b].born))
    }

    fn expires_at(self, b: usize) -> Timestamp {
        moment(i64::from(self.scope.plans[b].born + self.scope.life))
    }

    fn push_arrives(self, state: &mut State, b: usize, content: Content) {
        let now = state.now(Site::B);
        let batch = &mut state.batches[b];
        if batch.work == Work::Unmade || !life::is_live(self.expires_at(b), now) {
            return;
        }
        let same = |known: Content| known == content || self.mutant == Some(Mutant::IgnoreDigest);
        let known = match batch.at_b {
            Row::Unknown => Known::Unknown,
            Row::Tombstone => Known::Tombstone,
            Row::Stored(known) => Known::Batch { same_content: same(known), voided: false },
            Row::Voided(known) => Known::Batch { same_content: same(known), voided: true },
        };
        let inserted = life::push(known);
        if inserted == Inserted::Stored {
            batch.at_b = Row::Stored(content);
        }
        // An answer belongs to its request: the answer to other content is no acknowledgement to A.
        if matches!(inserted, Inserted::Stored | Inserted::AlreadyStored) && content == Content::Genuine {
            batch.acknowledged = true;
        }
    }

    fn void_at_home(self, state: &mut State, b: usize) {
        let now = state.now(Site::A);
        let shows = match self.mutant {
            Some(Mutant::VoidExpired) => true,
            Some(Mutant::VoidForgotten) => life::is_live(self.expires_at(b), now),
            _ => now < life::leases_show_until(self.created_at(b), self.expires_at(b)),
        };
        let (batch, plan) = (&mut state.batches[b], self.scope.plans[b]);
        if batch.work != Work::Doubtful {
            return;
        }
        // It was handed out and swept, or never committed: A does not know which. And B's clock may be
        // behind.
        if !shows {
            batch.work = Work::Over;
            return;
        }
        let whole = plan.kind == Kind::OnDemand || batch.ready == plan.all();
        match batch.at_a {
            // Its keys were leased since, so the commit succeeded and the batch is good.
            Row::Stored(_) if !whole && self.mutant != Some(Mutant::VoidLeased) => {
                batch.work = Work::Over;
                return;
            }
            Row::Stored(content) | Row::Voided(content) => {
                batch.void_at_a |= self.voided_keys(batch, plan, Site::A);
                batch.at_a = Row::Voided(content);
                batch.ready = 0;
            }
            Row::Unknown | Row::Tombstone => batch.at_a = Row::Tombstone,
        }
        batch.work = Work::Retracting;
    }

    fn void_arrives(self, batch: &mut Batch, plan: Plan) {
        match batch.at_b {
            Row::Unknown | Row::Tombstone => {
                if self.mutant != Some(Mutant::ForgetTombstone) {
                    batch.at_b = Row::Tombstone;
                }
            }
            Row::Stored(content) | Row::Voided(content) => {
                batch.void_at_b |= self.voided_keys(batch, plan, Site::B);
                batch.at_b = Row::Voided(content);
            }
        }
        batch.void_done = true;
    }

    /// The keys that a void erases at `site`.
    fn voided_keys(self, batch: &Batch, plan: Plan, site: Site) -> u8 {
        let already = if site == Site::A { batch.void_at_a } else { batch.void_at_b };
        let at_void = |key: u8| {
            if already & bit(key) != 0 {
                KeyAtVoid::Voided
            } else if batch.used & self.scope.held(key, site) != 0 {
                KeyAtVoid::Retrieved
            } else {
                KeyAtVoid::Fresh
            }
        };
        (0..plan.keys)
            .filter(|key| life::void(at_void(*key)) == Voiding::Erase)
            .fold(0, |bits, key| bits | bit(key))
    }

    fn hand_out(self, state: &mut State, b: usize, key: u8) {
        let (now, expires_at) = (state.now(Site::A), self.expires_at(b));
        let leased_at = moment(i64::from(state.batches[b].leased_at));
        let usable = match self.mutant {
            Some(Mutant::NoMargin) => life::is_live(expires_at, now),
            Some(Mutant::ForgetHold) => self.is_usable(state, b),
            _ => now < life::hand_out_until(self.created_at(b), expires_at, leased_at),
        };
        if state.batches[b].leased & bit(key) == 0 || !usable {
            return;
        }
        let (late, live_at_b) = (self.has_expired(state, b, Site::A), !self.has_expired(state, b, Site::B));
        let expiry = self.scope.plans[b].born + self.scope.life;
        // The hand-out may be at the end of its tick.
        let owed_until = (state.clock + 1 + self.scope.master_ttl).min(expiry);
        let batch = &mut state.batches[b];
        batch.owed_until = batch.owed_until.max(owed_until);
        let twin = live_at_b && batch.at_b.is_stored() && batch.void_at_b & bit(key) == 0;
        batch.leased &= !bit(key);
        batch.handed_again |= batch.handed & bit(key);
        batch.handed |= bit(key);
        batch.genuine |= bit(key);
        batch.twinless |= !twin;
        batch.late |= late;
    }

    fn retrieve(self, state: &mut State, b: usize, key: u8, entitled: u8) {
        let site = self.scope.entitled[usize::from(entitled)];
        let (now, held) = (state.now(site), retrieval(key, entitled));
        let late = self.has_expired(state, b, site);
        let clock = state.clock;
        let role = if site == Site::A { Role::Master } else { Role::Slave };
        let batch = &mut state.batches[b];
        let copy_ends = (batch.copy_ends != NEVER && self.mutant != Some(Mutant::ForgetCopyEnd))
            .then(|| moment(i64::from(batch.copy_ends)));
        let until = life::retrievable_until(role, self.expires_at(b), copy_ends);
        let live = now < until || self.mutant == Some(Mutant::ForgetExpiry);
        let (row, voided) = match site {
            Site::A => (batch.at_a, batch.void_at_a),
            Site::B => (batch.at_b, batch.void_at_b),
        };
        let (Row::Stored(content) | Row::Voided(content)) = row else { return };
        if !live || voided & bit(key) != 0 {
            return;
        }
        let terms = Terms { mode: RetrievalMode::Once, replay_window: Duration::ZERO };
        let used = batch.used & held != 0;
        let earlier = used.then_some(EarlierUse { by_same_caller: true, at: now });
        if life::claim(earlier, terms, now) != Claim::Take {
            return;
        }
        batch.late |= late;
        let last_end = batch.leased_at + HOLD_TICKS + self.scope.master_ttl;
        batch.stale |= role == Role::Master && batch.leased_at != NEVER && clock >= last_end;
        match content {
            Content::Genuine => batch.genuine |= bit(key),
            Content::Other => batch.other |= bit(key),
        }
        batch.answering |= held;
        if self.mutant == Some(Mutant::AnswerBeforeCommit) {
            answered(batch, held);
        } else {
            batch.used |= held;
        }
    }

    /// The observer computes this itself, so that it finds wrong decisions of the code.
    fn has_expired(self, state: &State, b: usize, site: Site) -> bool {
        state.ticks(site) >= i64::from(self.scope.plans[b].born + self.scope.life)
    }

    fn sweep(self, state: &mut State, b: usize, site: Site) {
        let batch = &state.batches[b];
        let expires_at = self.expires_at(b);
        let kept_until = if site == Site::B || matches!(batch.at_a, Row::Tombstone | Row::Voided(_)) {
            expires_at
        } else {
            let ready_until = life::usable_until(self.created_at(b), expires_at);
            let copy_ends = (batch.copy_ends != NEVER).then(|| moment(i64::from(batch.copy_ends)));
            life::kept_until(false, expires_at, (batch.ready != 0).then_some(ready_until), copy_ends)
        };
        if life::is_live(kept_until, state.now(site)) {
            return;
        }
        let swept = !self.scope.all_held(self.scope.plans[b], site);
        let batch = &mut state.batches[b];
        batch.used &= swept;
        match site {
            Site::A => {
                (batch.at_a, batch.ready, batch.void_at_a) = (Row::Unknown, 0, 0);
                batch.copy_ends = NEVER;
            }
            Site::B => (batch.at_b, batch.void_at_b) = (Row::Unknown, 0),
        }
    }

    fn crash(self, state: &mut State, site: Site) {
        for (batch, plan) in state.batches.iter_mut().zip(self.scope.plans) {
            batch.answering &= !self.scope.all_held(*plan, site);
            if site == Site::B || batch.work == Work::Unmade {
                continue;
            }
            batch.work = Work::Over;
            batch.lost |= batch.leased;
            batch.leased = 0;
            if self.mutant == Some(Mutant::ForgetLease) && batch.at_a.is_stored() {
                batch.ready = plan.all();
            }
        }
    }

    /// A stops handing out, gives back what is left in one commit, and ends. A crash in between is the step
    /// `Crash`.
    fn stop(self, state: &mut State) {
        for (b, plan) in self.scope.plans.iter().enumerate() {
            let batch = &mut state.batches[b];
            batch.answering &= !self.scope.all_held(*plan, Site::A);
            if batch.work == Work::Unmade {
                continue;
            }
            batch.work = Work::Over;
            let leased = batch.leased;
            if leased != 0 {
                self.give_back(state, b);
            }
            if self.mutant == Some(Mutant::ReturnWhileServing) {
                state.batches[b].leased = leased;
            }
        }
    }
}

/// Commits a batch at A. Returns whether it was stored.
fn commit(batch: &mut Batch, plan: Plan) -> bool {
    let known = if batch.at_a == Row::Unknown { Known::Unknown } else { Known::Tombstone };
    let stored = life::push(known) == Inserted::Stored;
    if stored {
        batch.at_a = Row::Stored(Content::Genuine);
        if plan.kind == Kind::Reserve {
            batch.ready = plan.all();
        }
    }
    stored
}

fn answered(batch: &mut Batch, held: u8) {
    batch.answered_again |= batch.answered & held;
    batch.answered |= held;
}

/// The tick of a moment.
fn ticks(at: Timestamp) -> i64 {
    at.as_ms() / moment(1).as_ms()
}
