//! What can be done to the stored keys, inside a writer's transaction. The rules are those of [`kme::life`].

mod count;
mod data_keys;
mod ids;
mod insert;
mod locks;
mod ready;
mod retrieve;
pub(crate) mod rows;
pub(crate) mod sql;
mod sweep;
mod verb;
mod void;

pub(crate) use self::count::{count_batches, count_tombstones};
pub(crate) use self::data_keys::{check_data_keys, unwrap_data_key};
pub(crate) use self::ids::id_bytes;
pub(crate) use self::insert::Insert;
pub use self::insert::MAX_BATCHES_PER_INSERT;
pub(crate) use self::locks::Needs;
pub(crate) use self::ready::{GiveBack, Lease, PairText};
pub use self::retrieve::MAX_KEYS_PER_RETRIEVAL;
pub(crate) use self::retrieve::{Records, Retrieve};
pub(crate) use self::sweep::Sweep;
pub(crate) use self::verb::Verb;
pub(crate) use self::void::{Void, VoidUnlessLeased};
