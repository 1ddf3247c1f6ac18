//! Whose turn it is to refill a pair, among the daemons that share a database.

/// The right to refill one pair. Dropping it passes the turn on.
#[derive(Debug)]
#[must_use = "dropping it passes the turn on at once"]
pub struct RefillTurn(());

impl RefillTurn {
    /// The turn where only one daemon uses the database: always granted.
    pub(super) fn of_the_only_daemon() -> Self {
        Self(())
    }
}
