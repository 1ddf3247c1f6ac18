//! The race between the caller of a retrieval, who may give up, and the writer, who commits it. One of them
//! wins.
//!
//! Without this, a caller could be told that nothing was used up while its retrieval is about to be
//! committed.

use std::sync::OnceLock;

/// Shared by a job and its caller. Whoever comes first decides whether the commit may take place.
#[derive(Debug, Default)]
pub(crate) struct CommitRace(OnceLock<bool>);

impl CommitRace {
    /// For the writer, right before a commit. `false`: the caller has given up, so it must not take place.
    /// May be repeated.
    pub(super) fn claim(&self) -> bool {
        *self.0.get_or_init(|| true)
    }

    /// For the caller. `false`: a commit may be under way, so wait for its result. May be repeated.
    pub(crate) fn give_up(&self) -> bool {
        !*self.0.get_or_init(|| false)
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.0.get() == Some(&false)
    }
}

/// Gives up a retrieval when its caller goes away.
pub(crate) struct GiveUpOnDrop(pub(crate) std::sync::Arc<CommitRace>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retrieval_whose_commit_has_begun_cannot_be_given_up() {
        let race = CommitRace::default();
        assert!(race.claim() && race.claim());
        assert!(!race.give_up());
        let race = CommitRace::default();
        assert!(race.give_up() && race.give_up() && race.is_given_up());
        assert!(!race.claim());
    }
}
