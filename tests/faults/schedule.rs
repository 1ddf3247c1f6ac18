//! Which faults happen when. Depends only on the seed, so that a seed repeats them.

use std::time::Duration;

use testkit::postgres::Stop;

use crate::proxy::{Direction, Mode};
use crate::random::Choices;

/// One fault. Numbers are those of the cluster's processes, links and disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a start some time later.
    Kill {
        slot: usize,
    },
    /// SIGSTOP, and SIGCONT some time later.
    Pause {
        slot: usize,
    },
    /// SIGTERM, and a start as soon as it has ended.
    Terminate {
        slot: usize,
    },
    Link {
        link: usize,
        mode: Mode,
    },
    DiskFull {
        site: usize,
    },
    /// SQLite: database file, its log and their folder. Postgres: it takes no writes, as a standby.
    ReadOnly {
        site: usize,
    },
    /// Somebody else holds the database's write lock.
    Locked {
        site: usize,
    },
    /// Postgres stops, and starts some time later.
    Restart {
        site: usize,
        how: Stop,
    },
    /// SIGSTOP to all processes of Postgres, and SIGCONT some time later.
    Frozen {
        site: usize,
    },
    /// Postgres ends all sessions of the site and allows no more.
    Exhausted {
        site: usize,
    },
}

/// A fault, how long it lasts, and the pause since the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    pub(crate) after: Duration,
    pub(crate) fault: Fault,
    pub(crate) lasts: Duration,
}

/// The targets of faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    pub(crate) sites: usize,
    /// All replicas of all sites. They are the first slots.
    pub(crate) replicas: usize,
    /// Replicas and pool servers.
    pub(crate) slots: usize,
    pub(crate) links: usize,
    pub(crate) disks: usize,
    pub(crate) is_postgres: bool,
}

pub(crate) struct Schedule {
    choices: Choices,
    targets: Targets,
}

impl Schedule {
    pub(crate) fn new(seed: u64, targets: Targets) -> Self {
        Self { choices: Choices::new(seed, 0), targets }
    }

    fn slot(&mut self) -> usize {
        // Hits sites more often, because they have the keys.
        if self.choices.percent(60) {
            self.choices.below(self.targets.replicas)
        } else {
            self.choices.below(self.targets.slots)
        }
    }

    fn mode(&mut self) -> Mode {
        let direction = if self.choices.percent(50) { Direction::There } else { Direction::Back };
        match self.choices.below(6) {
            0 => Mode::Delay(Duration::from_millis(self.choices.between(20, 800))),
            1 => Mode::Cut,
            2 => Mode::Blackhole(direction),
            3 => Mode::Stall(direction),
            4 => Mode::Truncate(usize::try_from(self.choices.between(1, 60_000)).unwrap()),
            _ => Mode::Drip,
        }
    }
}

impl Iterator for Schedule {
    type Item = Strike;

    fn next(&mut self) -> Option<Strike> {
        let after = self.choices.between(800, 3000);
        let (fault, lasts) = if self.targets.is_postgres && self.choices.percent(30) {
            self.of_postgres()
        } else {
            self.of_any()
        };
        let millis = Duration::from_millis;
        Some(Strike { after: millis(after), fault, lasts: millis(lasts) })
    }
}

impl Schedule {
    /// A fault for a site with any database, and how many milliseconds it lasts.
    fn of_any(&mut self) -> (Fault, u64) {
        let on_disk = self.targets.disks > 0;
        match self.choices.between(0, 99) {
            0..=47 => (Fault::Kill { slot: self.slot() }, self.choices.between(0, 1200)),
            48..=55 => (Fault::Pause { slot: self.slot() }, self.choices.between(300, 6500)),
            56..=61 => (Fault::Terminate { slot: self.slot() }, 0),
            62..=65 if on_disk => (
                Fault::DiskFull { site: self.choices.below(self.targets.disks) },
                self.choices.between(500, 6000),
            ),
            66..=69 if on_disk => (
                Fault::ReadOnly { site: self.choices.below(self.targets.disks) },
                self.choices.between(500, 6000),
            ),
            70..=72 => (
                Fault::Locked { site: self.choices.below(self.targets.sites) },
                self.choices.between(300, 7000),
            ),
            _ => {
                let link = self.choices.below(self.targets.links);
                (Fault::Link { link, mode: self.mode() }, self.choices.between(500, 7000))
            }
        }
    }

    /// A fault for a database server.
    fn of_postgres(&mut self) -> (Fault, u64) {
        let site = self.choices.below(self.targets.sites);
        match self.choices.between(0, 99) {
            0..=69 => {
                let how = *self.choices.one_of(&[Stop::Fast, Stop::Immediate, Stop::Kill]);
                (Fault::Restart { site, how }, self.choices.between(0, 2500))
            }
            70..=84 => (Fault::Frozen { site }, self.choices.between(300, 7000)),
            _ => (Fault::Exhausted { site }, self.choices.between(300, 5000)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: Targets =
        Targets { sites: 2, replicas: 2, slots: 5, links: 8, disks: 2, is_postgres: false };

    #[test]
    fn a_seed_repeats_its_faults_and_another_has_others() {
        let first = |seed| format!("{:?}", Schedule::new(seed, TARGETS).take(50).collect::<Vec<_>>());
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
    }

    #[test]
    fn half_an_hour_has_over_300_kills_and_every_kind_of_fault() {
        for seed in 0..20 {
            let mut elapsed = Duration::ZERO;
            let strikes: Vec<Strike> = Schedule::new(seed, TARGETS)
                .take_while(|strike| {
                    elapsed += strike.after;
                    elapsed < Duration::from_mins(30)
                })
                .collect();
            let count = |is: fn(&Fault) -> bool| strikes.iter().filter(|strike| is(&strike.fault)).count();
            assert!(count(|fault| matches!(fault, Fault::Kill { .. })) > 330, "seed {seed}");
            for is in [
                (|fault| matches!(fault, Fault::Pause { .. })) as fn(&Fault) -> bool,
                |fault| matches!(fault, Fault::Terminate { .. }),
                |fault| matches!(fault, Fault::DiskFull { .. }),
                |fault| matches!(fault, Fault::ReadOnly { .. }),
                |fault| matches!(fault, Fault::Locked { .. }),
                |fault| matches!(fault, Fault::Link { mode: Mode::Cut, .. }),
                |fault| matches!(fault, Fault::Link { mode: Mode::Drip, .. }),
                |fault| matches!(fault, Fault::Link { mode: Mode::Blackhole(_), .. }),
                |fault| matches!(fault, Fault::Link { mode: Mode::Stall(_), .. }),
                |fault| matches!(fault, Fault::Link { mode: Mode::Truncate(_), .. }),
                |fault| matches!(fault, Fault::Link { mode: Mode::Delay(_), .. }),
            ] {
                assert!(count(is) > 2, "seed {seed}");
            }
        }
    }
    #[test]
    fn a_quarter_of_an_hour_on_postgres_has_over_100_kills_and_every_fault_of_a_database() {
        for seed in 0..20 {
            let targets = Targets { replicas: 4, slots: 7, is_postgres: true, ..TARGETS };
            let mut elapsed = Duration::ZERO;
            let strikes: Vec<Strike> = Schedule::new(seed, targets)
                .take_while(|strike| {
                    elapsed += strike.after;
                    elapsed < Duration::from_mins(15)
                })
                .collect();
            let count = |is: fn(&Fault) -> bool| strikes.iter().filter(|strike| is(&strike.fault)).count();
            assert!(count(|fault| matches!(fault, Fault::Kill { .. })) > 110, "seed {seed}");
            for is in [
                (|fault| matches!(fault, Fault::Restart { how: Stop::Fast, .. })) as fn(&Fault) -> bool,
                |fault| matches!(fault, Fault::Restart { how: Stop::Immediate, .. }),
                |fault| matches!(fault, Fault::Restart { how: Stop::Kill, .. }),
                |fault| matches!(fault, Fault::Frozen { .. }),
                |fault| matches!(fault, Fault::Exhausted { .. }),
                |fault| matches!(fault, Fault::DiskFull { .. }),
                |fault| matches!(fault, Fault::ReadOnly { .. }),
                |fault| matches!(fault, Fault::Locked { .. }),
            ] {
                assert!(count(is) > 2, "seed {seed}");
            }
        }
    }
}
