//! The three calls of ETSI GS QKD 014, and who may do what.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::answer::{Delivered, Refusal, container, text_of};
use crate::directory::Directory;
use crate::fault::{Fault, Faults};
use crate::request::KeyRequest;
use crate::store::{Failed, MAX_STORED, Standing, Store};

const KEY_BITS: usize = 256;
const MIN_KEY_BITS: usize = 64;
const MAX_KEY_BITS: usize = 4096;
const MAX_PER_REQUEST: usize = 64;
const MAX_ADDITIONAL: usize = 3;
/// The one extension that is supported, and its only value: keys come directly, since there is no other
/// route.
const EXTENSION: &str = "example_route_type";
const EXTENSION_VALUE: &str = "direct";
/// Time between finding a key and using it up, with [`Fault::RaceServed`].
const RACE: Duration = Duration::from_millis(100);

/// All KMEs of the demo.
pub(crate) struct Network {
    pub(crate) directory: Arc<Directory>,
    pub(crate) faults: Faults,
    store: Mutex<Store>,
}

impl Network {
    pub(crate) fn new(directory: Arc<Directory>, faults: Faults) -> Self {
        Self { directory, faults, store: Mutex::new(Store::new(faults)) }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clause 6.1.
    pub(crate) fn status(&self, caller: &str, slave: &str) -> Result<Value, Refusal> {
        let source = self.directory.home(caller).unwrap_or_default();
        let target = self.peer_home(caller, slave, Fault::StatusOfUnknownSae)?;
        let stored = self.store().stored(caller, slave);
        let stored = match stored {
            _ if self.faults.has(Fault::CountOverMax) => MAX_STORED + 1,
            _ if self.faults.has(Fault::CountStale) => MAX_STORED,
            stored => stored,
        };
        let (master, slave) =
            if self.faults.has(Fault::StatusRolesSwapped) { (slave, caller) } else { (caller, slave) };
        let mut status = json!({
            "source_KME_ID": source,
            "target_KME_ID": target,
            "master_SAE_ID": master,
            "slave_SAE_ID": slave,
            "key_size": KEY_BITS,
            "stored_key_count": stored,
            "max_key_count": MAX_STORED,
            "max_key_per_request": MAX_PER_REQUEST,
            "max_key_size": MAX_KEY_BITS,
            "min_key_size": MIN_KEY_BITS,
            "max_SAE_ID_count": MAX_ADDITIONAL,
        });
        if let Some(members) = status.as_object_mut() {
            if self.faults.has(Fault::StatusMemberMissing) {
                members.remove("max_SAE_ID_count");
            }
            if self.faults.has(Fault::NumbersAsText) {
                for value in members.values_mut().filter(|value| value.is_number()) {
                    *value = Value::String(value.to_string());
                }
            }
        }
        Ok(status)
    }

    /// Clauses 5.3 and 6.2. Checks everything before it touches a key.
    pub(crate) fn enc_keys(
        &self,
        caller: &str,
        slave: &str,
        mut request: KeyRequest,
    ) -> Result<Value, Refusal> {
        self.peer_home(caller, slave, Fault::KeysForUnknownSae)?;
        if request.number == Some(0) && self.faults.has(Fault::NumberZero) {
            return Ok(container(&[], self.faults));
        }
        let number = self.number(request.number)?;
        let bytes = self.key_bytes(request.size_bits)?;
        if self.faults.has(Fault::AdditionalDropped) {
            request.additional.clear();
        }
        self.check_additional(caller, slave, &request.additional)?;
        self.check_extensions(&request)?;
        let mut slaves = vec![slave.to_owned()];
        slaves.append(&mut request.additional);
        match self.store().take(caller, &slaves, number, bytes) {
            Ok(keys) => Ok(container(&keys, self.faults)),
            Err(Failed::TooFew) => {
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not enough keys are stored"))
            }
            Err(Failed::Random(error)) => {
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
            }
        }
    }

    /// Clauses 5.4 and 6.4: all keys or none, and a refusal changes nothing.
    pub(crate) async fn dec_keys(
        &self,
        caller: &str,
        master: &str,
        ids: &[String],
    ) -> Result<Value, Refusal> {
        if self.directory.home(master).is_none() || master == caller {
            return Err(Refusal::bad("the path shall name the master SAE"));
        }
        let ids = self.key_ids(ids)?;
        if self.faults.has(Fault::RaceServed) {
            let keys = self.find(&mut self.store(), caller, master, &ids)?;
            tokio::time::sleep(RACE).await;
            let mut store = self.store();
            for id in &ids {
                store.consume(id, caller);
            }
            return Ok(container(&keys, self.faults));
        }
        let mut store = self.store();
        let keys = self.find(&mut store, caller, master, &ids)?;
        for id in &ids {
            store.consume(id, caller);
        }
        Ok(container(&keys, self.faults))
    }

    /// The KME of the SAE in a path.
    fn peer_home(&self, caller: &str, peer: &str, unknown_is_fine: Fault) -> Result<&str, Refusal> {
        if peer == caller && !self.faults.has(Fault::OwnIdServed) {
            return Err(Refusal::bad("the path shall name the other SAE"));
        }
        match self.directory.home(peer) {
            Some(home) => Ok(home),
            None if self.faults.has(unknown_is_fine) => Ok("unknown"),
            None => Err(Refusal::bad("the SAE in the path is unknown")),
        }
    }

    fn number(&self, asked: Option<i128>) -> Result<usize, Refusal> {
        let most = if self.faults.has(Fault::OverMaximum) { 2 * MAX_PER_REQUEST } else { MAX_PER_REQUEST };
        let number = asked.map_or(Ok(1), usize::try_from).ok().filter(|number| (1..=most).contains(number));
        let number =
            number.ok_or_else(|| Refusal::bad(format!("number shall be from 1 to {MAX_PER_REQUEST}")))?;
        Ok(if self.faults.has(Fault::FewerKeys) { number.min(2) } else { number })
    }

    fn key_bytes(&self, asked: Option<i128>) -> Result<usize, Refusal> {
        let Some(asked) = asked.filter(|_| !self.faults.has(Fault::SizeIgnored)) else {
            return Ok(KEY_BITS / 8);
        };
        // Clause 6.2 has a sentence for this; it comes before the range.
        if asked % 8 != 0 && !self.faults.has(Fault::SizeTruncated) {
            let own = self.faults.has(Fault::SizeSentence);
            return Err(Refusal::bad(if own { "Invalid size" } else { "size shall be a multiple of 8" }));
        }
        let bits = usize::try_from(asked).ok().filter(|bits| (MIN_KEY_BITS..=MAX_KEY_BITS).contains(bits));
        bits.map(|bits| bits / 8)
            .ok_or_else(|| Refusal::bad(format!("size shall be from {MIN_KEY_BITS} to {MAX_KEY_BITS}")))
    }

    fn check_additional(&self, caller: &str, slave: &str, additional: &[String]) -> Result<(), Refusal> {
        if additional.len() > MAX_ADDITIONAL {
            return Err(Refusal::bad(format!("at most {MAX_ADDITIONAL} additional SAEs")));
        }
        let mut before: Vec<&str> = vec![caller, slave];
        for sae in additional {
            if self.directory.home(sae).is_none() && !self.faults.has(Fault::AdditionalUnchecked) {
                return Err(Refusal::bad("an additional SAE is unknown"));
            }
            if before.contains(&sae.as_str()) {
                return Err(Refusal::bad("an additional SAE is named twice"));
            }
            before.push(sae);
        }
        Ok(())
    }

    fn check_extensions(&self, request: &KeyRequest) -> Result<(), Refusal> {
        if !request.optional.is_empty() && self.faults.has(Fault::OptionalRefused) {
            return Err(Refusal::bad("Unknown optional extension"));
        }
        let mandatory = request.mandatory.iter().filter_map(Value::as_object).flatten();
        let (known, unknown): (Vec<_>, Vec<_>) = mandatory.partition(|(name, _)| *name == EXTENSION);
        if unknown.is_empty() || self.faults.has(Fault::MandatoryIgnored) {
            let is_met = known.iter().all(|(_, value)| *value == EXTENSION_VALUE);
            return if is_met || self.faults.has(Fault::UnmetServed) {
                Ok(())
            } else {
                Err(Refusal::bad("not all extension_mandatory request options could be met"))
            };
        }
        let own = self.faults.has(Fault::MandatorySentence);
        let mut refusal = Refusal::bad(if own {
            "Unknown mandatory extension"
        } else {
            "not all extension_mandatory parameters are supported"
        });
        refusal.details = Some(json!({ "extension_mandatory_unsupported": request.mandatory }));
        Err(refusal)
    }

    /// Checks key IDs and brings them into the store's form.
    fn key_ids(&self, asked: &[String]) -> Result<Vec<String>, Refusal> {
        if asked.is_empty() || asked.len() > MAX_PER_REQUEST {
            return Err(Refusal::bad(format!("key_IDs shall name 1 to {MAX_PER_REQUEST} keys")));
        }
        let mut ids: Vec<String> = Vec::with_capacity(asked.len());
        for id in asked {
            let is_uuid = id.len() == 36 && uuid::Uuid::try_parse(id).is_ok();
            if !is_uuid && !self.faults.has(Fault::IdNoUuid) {
                return Err(Refusal::bad("a key_ID is not a UUID"));
            }
            let id =
                if self.faults.has(Fault::UpperCaseMissing) { id.clone() } else { id.to_ascii_lowercase() };
            if ids.contains(&id) && !self.faults.has(Fault::TwiceInOneServed) {
                return Err(Refusal::bad("a key_ID is named twice"));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// The keys `ids`, if the caller may have every one.
    fn find(
        &self,
        store: &mut Store,
        caller: &str,
        master: &str,
        ids: &[String],
    ) -> Result<Vec<Delivered>, Refusal> {
        let standings: Vec<Standing> = ids.iter().map(|id| store.standing(id, caller, master)).collect();
        let waiting = ids.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::Waiting);
        let found: Vec<Delivered> = waiting.filter_map(|(id, _)| store.look(id)).collect();
        if found.len() == ids.len() || (self.faults.has(Fault::PartialContainer) && !found.is_empty()) {
            return Ok(found);
        }
        if self.faults.has(Fault::RefusedConsumes) {
            for key in &found {
                store.consume(&key.id, caller);
            }
        }
        let is_foreign = standings.contains(&Standing::Foreign) && !self.faults.has(Fault::ForeignIs400);
        let mut refusal = if is_foreign { Refusal::unauthorized() } else { Refusal::missing(self.faults) };
        if self.faults.has(Fault::KeyInError)
            && let Some(key) = ids.iter().find_map(|id| store.look(id))
        {
            refusal.details = Some(json!({ "key": text_of(&key.bytes, self.faults) }));
        }
        Err(refusal)
    }
}
