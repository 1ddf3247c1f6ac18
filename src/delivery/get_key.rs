//! Get key: ETSI GS QKD 014, clauses 5.3 and 6.2.

use std::borrow::Cow;

use kme::{Demands, FreshKey, KeyLimits, Party, Recipient, SaeId};

use super::{Caller, Delivery, DeliveryError, Refusal};
use crate::supply::{KeyOrder, SupplyError};

/// A request for fresh keys, as the caller wrote it. The numbers can hold values that are out of range.
#[derive(Clone, Debug)]
pub struct KeyRequest {
    /// `number`; one when absent.
    pub number: Option<i128>,
    /// `size` in bits; `key_size` of status when absent.
    pub size_bits: Option<i128>,
    /// `additional_slave_SAE_IDs`.
    pub additional_slaves: Option<Vec<String>>,
    /// Names in `extension_mandatory` that are not supported, one group for each object that has any.
    pub unsupported_extensions: Vec<Vec<String>>,
    /// What the supported extensions demand; `None` if no key can meet it.
    pub demands: Option<Demands>,
}

impl Default for KeyRequest {
    fn default() -> Self {
        Self {
            number: None,
            size_bits: None,
            additional_slaves: None,
            unsupported_extensions: Vec::new(),
            demands: Some(Demands::default()),
        }
    }
}

/// A request that breaks no rule, ready to be ordered.
struct Checked<'a> {
    recipients: Cow<'a, [Recipient]>,
    number: usize,
    key_bytes: usize,
    demands: &'a Demands,
}

impl Checked<'_> {
    fn order<'a>(&'a self, master: &'a SaeId) -> KeyOrder<'a> {
        let Self { recipients, number, key_bytes, demands } = self;
        KeyOrder { master, recipients, number: *number, key_bytes: *key_bytes, demands }
    }

    /// Checks that the keys have the length and number that were asked for.
    fn accept(&self, keys: Vec<FreshKey>) -> Result<Vec<FreshKey>, DeliveryError> {
        let is_right = |fresh: &FreshKey| fresh.key.material.len_bytes() == self.key_bytes;
        if keys.len() == self.number && keys.iter().all(is_right) {
            return Ok(keys);
        }
        tracing::error!(asked = self.number, made = keys.len(), "the key source broke its contract");
        Err(SupplyError::Internal.into())
    }
}

impl Delivery {
    /// Hands out fresh keys that the caller shares with the party in `path_id` and every additional slave.
    /// All or none; a refused request makes no key.
    ///
    /// # Errors
    /// [`DeliveryError::Refused`] with the first broken rule, or [`DeliveryError::Supply`].
    pub async fn get_key(
        &self,
        caller: &Caller,
        path_id: &str,
        request: &KeyRequest,
    ) -> Result<Vec<FreshKey>, DeliveryError> {
        let checked = self.check(caller, path_id, request)?;
        let keys = self.source.make(checked.order(caller.sae())).await.map_err(|error| match error {
            SupplyError::DemandsNotMet => Refusal::ExtensionsNotMet.into(),
            error => DeliveryError::from(error),
        })?;
        checked.accept(keys)
    }

    fn check<'a>(
        &self,
        caller: &'a Caller,
        path_id: &str,
        request: &'a KeyRequest,
    ) -> Result<Checked<'a>, Refusal> {
        let slave = caller.recipient(path_id)?;
        let limits = &self.rules.limits;
        let key_bytes = key_bytes(request.size_bits, limits)?;
        let number = number(request.number, limits)?;
        let additional = request.additional_slaves.as_deref();
        if self.rules.strict && additional.is_some_and(<[_]>::is_empty) {
            return Err(Refusal::NoAdditionalSlaves);
        }
        let recipients = recipients(caller, slave, additional.unwrap_or_default(), limits)?;
        if !request.unsupported_extensions.is_empty() {
            return Err(Refusal::UnsupportedExtensions { names: request.unsupported_extensions.clone() });
        }
        let demands = request.demands.as_ref().ok_or(Refusal::ExtensionsNotMet)?;
        Ok(Checked { recipients, number, key_bytes, demands })
    }
}

/// "Not a multiple of 8" comes before "out of range" (clause 6.2).
fn key_bytes(size_bits: Option<i128>, limits: &KeyLimits) -> Result<usize, Refusal> {
    let size_bits = size_bits.unwrap_or(limits.size_bits.into());
    if size_bits % 8 != 0 {
        return Err(Refusal::SizeNotOctets);
    }
    let (min, max) = (limits.min_size_bits, limits.max_size_bits);
    if size_bits < min.into() || size_bits > max.into() {
        return Err(Refusal::SizeOutOfRange { min, max });
    }
    usize::try_from(size_bits / 8).ok().filter(|bytes| *bytes > 0).ok_or(Refusal::SizeOutOfRange { min, max })
}

fn number(number: Option<i128>, limits: &KeyLimits) -> Result<usize, Refusal> {
    let max = limits.max_per_request;
    let number = number.unwrap_or(1);
    usize::try_from(number)
        .ok()
        .filter(|_| number >= 1 && number <= max.into())
        .ok_or(Refusal::NumberOutOfRange { max })
}

fn recipients<'a>(
    caller: &Caller,
    slave: &'a Recipient,
    additional: &[String],
    limits: &KeyLimits,
) -> Result<Cow<'a, [Recipient]>, Refusal> {
    let max = limits.max_additional_saes;
    if u32::try_from(additional.len()).map_or(true, |count| count > max) {
        return Err(Refusal::TooManyAdditionalSlaves { max });
    }
    if additional.is_empty() {
        return Ok(Cow::Borrowed(std::slice::from_ref(slave)));
    }
    let mut recipients = vec![slave.clone()];
    for id in additional {
        let sae: SaeId = id.parse().map_err(Refusal::InvalidAdditionalSlave)?;
        if sae == *caller.sae() {
            return Err(Refusal::AdditionalSlaveIsCaller);
        }
        let kme = caller.directory().home_of(&sae).ok_or(Refusal::UnknownAdditionalSlave)?.clone();
        let recipient = Recipient { party: Party::Sae(sae), kme };
        match recipients.iter().position(|known| *known == recipient) {
            None => recipients.push(recipient),
            Some(0) => return Err(Refusal::AdditionalSlaveIsSlave),
            Some(_) => return Err(Refusal::DuplicateAdditionalSlave),
        }
    }
    Ok(Cow::Owned(recipients))
}
