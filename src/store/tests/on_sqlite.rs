//! The store's rules on SQLite files.

use super::*;

fn site() -> Site {
    Site::on(Kind::Sqlite)
}

/// A site for one test.
macro_rules! site {
    () => {
        super::site()
    };
}

#[path = "carry_over.rs"]
mod carry_over;
#[path = "copies.rs"]
mod copies;
#[path = "durability.rs"]
mod durability;
mod files;
#[path = "insert.rs"]
mod insert;
#[path = "ready.rs"]
mod ready;
#[path = "retrieve.rs"]
mod retrieve;
#[path = "tampering.rs"]
mod tampering;
#[path = "usage.rs"]
mod usage;
#[path = "void_and_sweep.rs"]
mod void_and_sweep;
