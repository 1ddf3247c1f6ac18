//! What applications do: they ask for keys, retrieve them at once, later or twice, make mistakes and hang up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::board::{Board, Lane, Pile};
use crate::client::Client;
use crate::history::{Ask, Caller, Event, History, Outcome, Party, Slave, Stopwatch};
use crate::random::Choices;

/// While more retrievals than this wait, applications retrieve instead of asking for more.
const BACKLOG_MAX: usize = 4000;
const SIZES_BITS: [usize; 6] = [128, 256, 256, 256, 512, 1024];

/// What all applications share.
pub(crate) struct World {
    pub(crate) stopwatch: Stopwatch,
    pub(crate) history: History,
    pub(crate) board: Board,
    /// All SAEs of the network.
    pub(crate) saes: Vec<Caller>,
    /// IDs of the sites.
    pub(crate) sites: Vec<String>,
    /// Whether to ask for the expiry of keys.
    pub(crate) ask_expiry: bool,
    pub(crate) stop: AtomicBool,
}

impl World {
    /// The body of an order. It asks for the expiry if this run looks at that.
    pub(crate) fn enc_body(&self, slaves: &[Slave], number: usize, bits: usize) -> Value {
        let additional: Vec<&str> = slaves[1..]
            .iter()
            .filter_map(|slave| if let Party::Sae(sae) = &slave.party { Some(&**sae) } else { None })
            .collect();
        let mut body = json!({ "number": number, "size": bits });
        if !additional.is_empty() {
            body["additional_slave_SAE_IDs"] = json!(additional);
        }
        if self.ask_expiry {
            body["extension_optional"] = json!([{ "dqkd_expiry": {} }]);
        }
        body
    }
}

/// One application thread.
pub(crate) struct Worker {
    pub(crate) world: Arc<World>,
    pub(crate) client: Client,
    pub(crate) choices: Choices,
}

impl Worker {
    /// Works until told to stop.
    pub(crate) async fn work(mut self) {
        while !self.world.stop.load(Ordering::Relaxed) {
            let is_much = self.world.board.left() > BACKLOG_MAX;
            match self.choices.between(0, 99) {
                0..=1 => self.status().await,
                2..=4 => self.enc(true).await,
                5..=7 => self.dec(Pile::Fresh, 8, true).await,
                8..=11 => self.dec(Pile::Spent, 1, false).await,
                12..=15 => self.dec(Pile::Doubtful, 1, false).await,
                16..=19 => self.foreign().await,
                20..=22 => self.mixed_with_unknown().await,
                23..=60 if !is_much => self.enc(false).await,
                _ => {
                    let count = if is_much { 64 } else { self.choices.between(1, 16) };
                    self.dec(Pile::Fresh, usize::try_from(count).unwrap(), false).await;
                }
            }
            let pause = self.choices.between(0, 20);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Retrieves everything that is left for this SAE, doubtful keys one by one.
    pub(crate) async fn drain(mut self) {
        while !self.world.stop.load(Ordering::Relaxed) {
            if let Some((lane, ids)) = self.take(Pile::Fresh, 64) {
                self.retrieve(&lane, ids, None).await;
            } else if let Some((lane, ids)) = self.take(Pile::Doubtful, 1) {
                self.retrieve(&lane, ids, None).await;
            } else {
                return;
            }
        }
    }

    async fn status(&mut self) {
        let other = self.other_sae(|_| true);
        self.client.ask(&self.world, "status", &Party::Sae(other.sae), Ask::Status, None, None).await;
    }

    pub(crate) async fn enc(&mut self, hang_up: bool) {
        let slaves = self.slaves();
        let number = usize::try_from(self.choices.between(1, 8)).unwrap();
        let bits = *self.choices.one_of(&SIZES_BITS);
        let hang_up = self.patience(hang_up);
        let may_get = slaves.len() == 1 && !self.world.ask_expiry;
        let body = (!may_get || self.choices.percent(50)).then(|| self.world.enc_body(&slaves, number, bits));
        self.order(slaves, number, bits, body, hang_up).await;
    }

    /// Asks for keys and puts them up for retrieval.
    pub(crate) async fn order(
        &mut self,
        slaves: Vec<Slave>,
        number: usize,
        bits: usize,
        body: Option<Value>,
        hang_up: Option<Duration>,
    ) -> u16 {
        let path = slaves[0].party.clone();
        let call = if body.is_some() {
            "enc_keys".to_owned()
        } else {
            format!("enc_keys?number={number}&size={bits}")
        };
        let ask = Ask::Enc { slaves: slaves.clone(), number, bits };
        let event = self.client.ask(&self.world, &call, &path, ask, body, hang_up).await;
        let ids: Vec<Uuid> = event.keys().iter().map(|seen| seen.id).collect();
        if !ids.is_empty() {
            self.world.board.add_fresh(self.client.caller(), &slaves, &ids);
        }
        self.breathe(&event).await;
        event.status()
    }

    fn slaves(&mut self) -> Vec<Slave> {
        let site = self.client.caller().site;
        let slave = |sae: Caller| Slave { party: Party::Sae(sae.sae), site: sae.site };
        match self.choices.between(0, 99) {
            0..=9 => vec![slave(self.other_sae(|sae| sae.site == site))],
            10..=24 => {
                let to = self.other_sae(|sae| sae.site != site).site;
                vec![Slave { party: Party::Kme(to), site: to }]
            }
            25..=39 => {
                let mut slaves = vec![slave(self.other_sae(|sae| sae.site != site))];
                for _ in 0..self.choices.between(1, 2) {
                    let more = slave(self.other_sae(|_| true));
                    if !slaves.contains(&more) {
                        slaves.push(more);
                    }
                }
                slaves
            }
            _ => vec![slave(self.other_sae(|sae| sae.site != site))],
        }
    }

    /// Another SAE that `fits`, or any other if none does.
    fn other_sae(&mut self, fits: impl Fn(&Caller) -> bool) -> Caller {
        let own = self.client.caller().sae.clone();
        let others: Vec<&Caller> = self.world.saes.iter().filter(|sae| sae.sae != own).collect();
        let fitting: Vec<&Caller> = others.iter().copied().filter(|sae| fits(sae)).collect();
        let from = if fitting.is_empty() { &others } else { &fitting };
        (*self.choices.one_of(from)).clone()
    }

    fn take(&mut self, pile: Pile, count: usize) -> Option<(Lane, Vec<Uuid>)> {
        let world = Arc::clone(&self.world);
        world.board.take(self.client.caller(), pile, count, &mut self.choices)
    }

    async fn dec(&mut self, pile: Pile, count: usize, hang_up: bool) {
        let Some((lane, ids)) = self.take(pile, count) else { return };
        let hang_up = self.patience(hang_up);
        if pile == Pile::Spent {
            let ask = Ask::Dec { path: lane.path.clone(), ids };
            self.client.ask(&self.world, "dec_keys", &lane.path, ask, None, hang_up).await;
        } else {
            self.retrieve(&lane, ids, hang_up).await;
        }
    }

    /// Retrieves keys that were taken off the board; puts back what may still be there.
    async fn retrieve(&mut self, lane: &Lane, ids: Vec<Uuid>, hang_up: Option<Duration>) {
        let path = self.some_path(lane);
        let ask = Ask::Dec { path: path.clone(), ids: ids.clone() };
        let event = self.client.ask(&self.world, "dec_keys", &path, ask, None, hang_up).await;
        let board = &self.world.board;
        match (&event.outcome, event.status()) {
            (_, 200) => board.put(lane, Pile::Spent, &ids),
            (Outcome::Lost, _) => board.put(lane, Pile::Doubtful, &ids),
            (_, 400) if ids.len() > 1 => board.put(lane, Pile::Doubtful, &ids),
            (_, 400) => {}
            _ if ids.len() == 1 => board.put(lane, Pile::Doubtful, &ids),
            _ => board.put(lane, Pile::Fresh, &ids),
        }
        self.breathe(&event).await;
    }

    /// A slave may name the master's KME instead of the master.
    fn some_path(&mut self, lane: &Lane) -> Party {
        let is_slave = lane.path != Party::Kme(lane.site) && matches!(lane.path, Party::Sae(_));
        let master = self.world.saes.iter().find(|sae| lane.path == Party::Sae(sae.sae.clone()));
        match master {
            Some(master) if is_slave && master.site != lane.site && self.choices.percent(20) => {
                Party::Kme(master.site)
            }
            _ => lane.path.clone(),
        }
    }

    /// Asks for a key that is another SAE's.
    async fn foreign(&mut self) {
        let world = Arc::clone(&self.world);
        let found = world.board.peek_foreign(self.client.caller(), &mut self.choices);
        let Some((lane, id)) = found else { return };
        let mut ids = vec![id];
        if self.choices.percent(30) {
            ids.push(self.choices.uuid());
        }
        let ask = Ask::Dec { path: lane.path.clone(), ids };
        self.client.ask(&self.world, "dec_keys", &lane.path, ask, None, None).await;
    }

    /// Asks for own keys together with one that never existed: nothing may be used up.
    async fn mixed_with_unknown(&mut self) {
        let Some((lane, mut ids)) = self.take(Pile::Fresh, 4) else { return };
        let own = ids.clone();
        ids.insert(self.choices.below(ids.len() + 1), self.choices.uuid());
        let ask = Ask::Dec { path: lane.path.clone(), ids };
        self.client.ask(&self.world, "dec_keys", &lane.path, ask, None, None).await;
        self.world.board.put(&lane, Pile::Fresh, &own);
    }

    fn patience(&mut self, hang_up: bool) -> Option<Duration> {
        hang_up.then(|| Duration::from_micros(self.choices.between(200, 30_000)))
    }

    /// After a refusal, waits a moment.
    async fn breathe(&mut self, event: &Event) {
        if !matches!(event.status(), 200 | 400 | 401) {
            sleep(Duration::from_millis(self.choices.between(50, 300))).await;
        }
    }
}
