//! The store's rules on Postgres, and what only a server and several daemons can do to them.

use super::*;

fn site() -> Site {
    Site::on(Kind::Postgres)
}

/// A site for one test. Without Postgres the test is skipped.
macro_rules! site {
    () => {{
        testkit::needs!(Postgres);
        super::site()
    }};
}

#[path = "carry_over.rs"]
mod carry_over;
#[path = "copies.rs"]
mod copies;
#[path = "durability.rs"]
mod durability;
#[path = "insert.rs"]
mod insert;
mod lossy;
mod plans;
#[path = "ready.rs"]
mod ready;
mod replicas;
#[path = "retrieve.rs"]
mod retrieve;

#[path = "tampering.rs"]
mod tampering;
mod trouble;
#[path = "usage.rs"]
mod usage;
#[path = "void_and_sweep.rs"]
mod void_and_sweep;
