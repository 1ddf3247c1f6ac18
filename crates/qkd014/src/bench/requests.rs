//! Requests, prepared before the clock runs.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::setup::{End, Load, Operation};
use crate::https::HttpRequest;
use crate::wire;

/// Get key for `slave`, by GET.
fn enc(slave: &str, load: &Load) -> HttpRequest {
    let mut target = wire::path(slave, "enc_keys");
    let mut separator = '?';
    if load.number != 1 {
        let _ = write!(target, "?number={}", load.number);
        separator = '&';
    }
    if let Some(bits) = load.size_bits {
        let _ = write!(target, "{separator}size={bits}");
    }
    HttpRequest { is_last: load.operation == Operation::Handshake, ..HttpRequest::get(target) }
}

/// Get key with key IDs: by GET for one, by POST for several.
pub(super) fn dec<'a>(master: &End, ids: impl ExactSizeIterator<Item = &'a str>) -> HttpRequest {
    let path = wire::path(&master.name, "dec_keys");
    if ids.len() == 1 {
        let id: String = ids.collect();
        return HttpRequest::get(path + &wire::key_id_query(&id));
    }
    HttpRequest::post(path, wire::key_ids_body(ids))
}

/// Requests for Get key, one slave after the other.
pub(super) struct EncRequests {
    first: HttpRequest,
    others: Vec<HttpRequest>,
    sent: AtomicUsize,
}

impl EncRequests {
    /// For `slave`, or for as many others as `load` says.
    pub(super) fn new(slave: &End, load: &Load) -> Self {
        let others = (2..=load.slaves.unwrap_or(0)).map(|number| enc(&nth(slave, number), load));
        Self {
            first: enc(&first_slave(slave, load), load),
            others: others.collect(),
            sent: AtomicUsize::new(0),
        }
    }

    /// The next one; after the last comes the first.
    pub(super) fn next(&self) -> &HttpRequest {
        if self.others.is_empty() {
            return &self.first;
        }
        let index = self.sent.fetch_add(1, Ordering::Relaxed) % (self.others.len() + 1);
        self.others.get(index).unwrap_or(&self.first)
    }
}

/// The first slave that `enc_keys` names.
pub(super) fn first_slave(slave: &End, load: &Load) -> String {
    load.slaves.map_or_else(|| slave.name.clone(), |_| nth(slave, 1))
}

fn nth(slave: &End, number: usize) -> String {
    format!("{}-{number}", slave.name)
}
