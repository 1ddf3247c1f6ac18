//! What this site demands of a push.

use std::time::Duration;

use kme::{Directory, KeyId, KeyLimits, KmeId, Party, Recipient, Timestamp, life};

use super::{IntakeError, refused};
use crate::peer::wire::BatchMetadata;
use crate::store::{Entitlement, Role};

/// Most batches of one push.
pub(in crate::supply) const BATCHES_PER_PUSH_MAX: usize = 4;
/// Most keys of one push.
pub const KEYS_PER_PUSH_MAX: usize = BATCHES_PER_PUSH_MAX * blast::MAX_KEYS_PER_BATCH;
/// More than a push of so many batches is long, in bytes.
const BODY_OF_MANY: usize = 64 * 1024;

/// What this site accepts from its peers.
#[derive(Clone, Debug)]
pub struct IntakeRules {
    /// Sizes of keys and number of SAEs.
    pub limits: KeyLimits,
    /// Largest difference of clocks.
    pub clock_skew_max: Duration,
    /// Longest body of a request.
    pub body_max_bytes: usize,
}

impl IntakeRules {
    /// How many batches a peer may push at once: only one where several may be too long for a request.
    pub(super) fn batches_per_push(&self) -> usize {
        if self.body_max_bytes < BODY_OF_MANY { 1 } else { BATCHES_PER_PUSH_MAX }
    }
}

/// One push, checked against this site's rules.
pub(super) struct Checked<'a> {
    pub(super) rules: &'a IntakeRules,
    pub(super) key_ttl_max: Duration,
    pub(super) directory: &'a Directory,
    pub(super) source: &'a KmeId,
    pub(super) batch: &'a BatchMetadata,
}

impl Checked<'_> {
    /// Who may retrieve the keys of the batch at this site. Fails if the push breaks a rule.
    pub(super) fn entitled_here(&self, now: Timestamp) -> Result<Vec<Entitlement>, IntakeError> {
        self.suite_and_sizes()?;
        self.times(now)?;
        self.master()?;
        self.recipients()
    }

    fn suite_and_sizes(&self) -> Result<(), IntakeError> {
        let refuse = |text: String| Err(IntakeError::Refused(text));
        let (batch, limits) = (self.batch, &self.rules.limits);
        if batch.suite != blast::SUITE {
            return refuse(format!("the suite is unknown; this KME knows {}", blast::SUITE));
        }
        let bits = batch.key_bytes.saturating_mul(8);
        let within = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
        if bits < within(limits.min_size_bits) || bits > within(limits.max_size_bits) {
            let (min, max) = (limits.min_size_bits, limits.max_size_bits);
            return refuse(format!("keys of {bits} bits are not accepted, {min} to {max} are"));
        }
        blast::output_bits(batch.key_bytes, batch.key_ids.len()).map_err(refused)?;
        if !KeyId::share_prefix(&batch.key_ids) {
            return refuse("the key IDs of a batch share their first six bytes; these do not".to_owned());
        }
        Ok(())
    }

    fn times(&self, now: Timestamp) -> Result<(), IntakeError> {
        let refuse = |text: String| Err(IntakeError::Refused(text));
        let (created_at, expires_at) = (self.batch.created_at, self.batch.expires_at);
        let skew = now.since(created_at).max(created_at.since(now));
        if skew > self.rules.clock_skew_max {
            return refuse(format!(
                "the clocks differ: the batch was made at {created_at}, the time here is {now}, {} s are allowed",
                self.rules.clock_skew_max.as_secs()
            ));
        }
        if !life::is_live(expires_at, now) || expires_at <= created_at {
            return refuse(format!("the batch expired at {expires_at}, the time here is {now}"));
        }
        let life = expires_at.since(created_at);
        if life > self.key_ttl_max {
            return refuse(format!(
                "these keys would live {} s (keys.ttl at KME {}); at KME {} they may live {} s \
                 (limits.kme.key_ttl_max)",
                life.as_secs(),
                self.source,
                self.directory.local(),
                self.key_ttl_max.as_secs()
            ));
        }
        Ok(())
    }

    /// A peer speaks only for masters that the directory places at its site.
    fn master(&self) -> Result<(), IntakeError> {
        let master = &self.batch.master;
        let not_allowed = |text: String| Err(IntakeError::NotAllowed(text));
        match self.directory.resolve(master.as_str()) {
            Some(Recipient { party: Party::Sae(_), kme }) if kme == self.source => Ok(()),
            Some(Recipient { party: Party::Sae(_), kme }) => {
                not_allowed(format!("SAE {master} lives at KME {kme}, not at {}", self.source))
            }
            Some(Recipient { party: Party::Kme(_), .. }) => {
                not_allowed(format!("{master} is a KME, not an SAE"))
            }
            // Otherwise a peer could speak for an SAE of any site.
            None => not_allowed(format!(
                "SAE {master} is not listed here: add it to [[sae]] of this site, with kme = \"{}\"",
                self.source
            )),
        }
    }

    fn recipients(&self) -> Result<Vec<Entitlement>, IntakeError> {
        let refuse = |text: String| Err(IntakeError::Refused(text));
        let recipients = &self.batch.recipients;
        let most =
            usize::try_from(self.rules.limits.max_additional_saes).unwrap_or(usize::MAX).saturating_add(1);
        if recipients.is_empty() || recipients.len() > most {
            return refuse(format!("a batch has 1 to {most} recipients"));
        }
        let local = self.directory.local();
        let mut entitled = Vec::new();
        for (index, recipient) in recipients.iter().enumerate() {
            if recipients.iter().take(index).any(|earlier| earlier.party == recipient.party) {
                return refuse("a recipient is named twice".to_owned());
            }
            if recipient.party == Party::Sae(self.batch.master.clone()) {
                return refuse("the master is among the recipients".to_owned());
            }
            let known = match &recipient.party {
                Party::Sae(sae) => self.directory.home_of(sae),
                Party::Kme(kme) => Some(kme),
            };
            match known {
                Some(home) if home != &recipient.kme => {
                    let (party, named) = (name_of(&recipient.party), &recipient.kme);
                    return refuse(format!("{party} lives at KME {home}, not at {named}"));
                }
                None if recipient.kme == *local => {
                    return refuse(format!("{} is not known at this KME", name_of(&recipient.party)));
                }
                _ => {}
            }
            if recipient.kme == *local {
                entitled.push(Entitlement { party: recipient.party.clone(), role: Role::Slave });
            }
        }
        if entitled.is_empty() {
            return refuse("no recipient lives at this KME".to_owned());
        }
        Ok(entitled)
    }
}

fn name_of(party: &Party) -> String {
    match party {
        Party::Sae(sae) => format!("SAE {sae}"),
        Party::Kme(kme) => format!("KME {kme}"),
    }
}
