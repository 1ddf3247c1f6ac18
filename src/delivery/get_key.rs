//! Get key: ETSI GS QKD 014, clauses 5.3 and 6.2.

use super::{Caller, Delivery, DeliveryError, Refusal};
use crate::kme::{Demands, FreshKey, KeyLimits, Party, Recipient, SaeId};
use crate::supply::{KeyOrder, SupplyError};

/// A request for fresh keys, as the caller wrote it. Numbers are wide enough to hold what is out of range.
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
    /// What the supported ones demand of the keys; `None` for what no key can meet.
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

impl Delivery {
    /// Hands out fresh keys that the caller shares with whom `path_id` names, and with every additional slave.
    /// All or none; a refused request makes and uses up nothing.
    ///
    /// # Errors
    /// [`DeliveryError::Refused`] with the first rule that the request breaks, or [`DeliveryError::Supply`].
    pub async fn get_key(
        &self,
        caller: &Caller,
        path_id: &str,
        request: &KeyRequest,
    ) -> Result<Vec<FreshKey>, DeliveryError> {
        let slave = caller.recipient(path_id)?;
        let limits = &self.rules.limits;
        let key_bytes = key_bytes(request.size_bits, limits)?;
        let number = number(request.number, limits)?;
        let additional = request.additional_slaves.as_deref();
        if self.rules.strict && additional.is_some_and(<[_]>::is_empty) {
            return Err(Refusal::NoAdditionalSlaves.into());
        }
        let recipients = recipients(caller, slave, additional.unwrap_or_default(), limits)?;
        if !request.unsupported_extensions.is_empty() {
            let names = request.unsupported_extensions.clone();
            return Err(Refusal::UnsupportedExtensions { names }.into());
        }
        let demands = request.demands.as_ref().ok_or(Refusal::ExtensionsNotMet)?;
        let order = KeyOrder { master: caller.sae(), recipients: &recipients, number, key_bytes, demands };
        let keys = self.source.make(order).await.map_err(|error| match error {
            SupplyError::DemandsNotMet => Refusal::ExtensionsNotMet.into(),
            error => DeliveryError::from(error),
        })?;
        // The advertised length and number are promises to two sites; never deliver anything else.
        if keys.len() != number || keys.iter().any(|fresh| fresh.key.material.len_bytes() != key_bytes) {
            tracing::error!(asked = number, made = keys.len(), "the key source broke its contract");
            return Err(SupplyError::Internal.into());
        }
        Ok(keys)
    }
}

/// A size that no key may have is named before a size that is merely out of range (clause 6.2).
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

fn recipients(
    caller: &Caller,
    slave: Recipient,
    additional: &[String],
    limits: &KeyLimits,
) -> Result<Vec<Recipient>, Refusal> {
    let max = limits.max_additional_saes;
    if u32::try_from(additional.len()).map_or(true, |count| count > max) {
        return Err(Refusal::TooManyAdditionalSlaves { max });
    }
    let mut recipients = vec![slave];
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
    Ok(recipients)
}
