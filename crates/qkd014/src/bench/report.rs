//! The results of a measurement, as a table and as data.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::kept::KeptAnswers;
use super::load::Measured;
use super::processes::ServerUse;
use super::setup::{Load, Operation, Setup, Supply};
use super::times::{Times, float};
use super::twins::Twins;
use super::windows::{Course, OverTime, Window};

/// Of the keys of a sustained measurement, the part that may be ready before: above it, the report says that the
/// time was too short.
const RESERVE_SHARE_MAX: f64 = 0.1;

/// One measurement of one server or pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Operations that succeeded.
    pub operations: u64,
    /// Length of the measurement.
    pub seconds: f64,
    /// Operations a second.
    pub operations_per_s: f64,
    /// Answered requests a second, whatever their status.
    pub requests_per_s: f64,
    /// Keys a second.
    pub keys_per_s: f64,
    /// Of whole operations. In an open loop an operation's time starts when it was due.
    pub latency_ms: Times,
    /// Of `enc_keys` in `pair`.
    pub enc_latency_ms: Option<Times>,
    /// Of `dec_keys` in `pair`.
    pub dec_latency_ms: Option<Times>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// What the first answer of each other status than 200 says.
    pub refusals: BTreeMap<u16, String>,
    /// Requests without an answer, by reason.
    pub troubles: BTreeMap<&'static str, u64>,
    /// How long processor time was counted: from the start of the measurement to the last answer.
    pub cpu_counted_s: f64,
    /// Seconds of the processor that the client used.
    pub client_cpu_s: f64,
    /// What each server on this machine used.
    pub servers: Vec<ServerUse>,
    /// What everything else on this machine used.
    pub others_cpu_s: f64,
    /// Seconds that the host of a virtual machine took from it.
    pub stolen_cpu_s: f64,
    /// Processor time for one operation, of all servers on this machine together.
    pub server_cpu_us_per_operation: Option<f64>,
    /// Ready keys before, by the status of the first KME.
    pub ready_before: Option<u64>,
    /// Ready keys after.
    pub ready_after: Option<u64>,
    /// The part of the delivered keys by which the ready ones became fewer, so that they were not made meanwhile.
    /// The warm-up is included. `None` for `dec`, for several slaves, and when the first KME does not tell.
    pub reserve_share: Option<f64>,
    /// For `dec`: keys that A had fetched and B had not, before.
    pub known_before: Option<u64>,
    /// The same after.
    pub known_after: Option<u64>,
    /// How figures went from window to window; `None` for the baseline.
    pub over_time: Option<OverTime>,
    /// The windows.
    pub windows: Vec<Window>,
    /// Result of comparing the keys.
    pub twins: Option<Twins>,
}

impl Run {
    /// What was measured, and the answers behind it.
    pub(super) fn new(measured: Measured, load: &Load) -> (Self, KeptAnswers) {
        let counts = &measured.counts;
        let (operations, seconds) = (counts.times.len(), measured.counted.as_secs_f64());
        let per_s = |count: u64| if seconds > 0.0 { float(count) / seconds } else { 0.0 };
        let of_servers: f64 = measured.used.servers.iter().map(|server| server.cpu_s).sum();
        let others = measured.used.machine - measured.used.client - of_servers;
        let used_for = measured.used_for.as_secs_f64();
        let has_servers = !measured.used.servers.is_empty() && operations > 0 && used_for > 0.0;
        let run = Self {
            operations,
            seconds,
            operations_per_s: per_s(operations),
            requests_per_s: per_s(counts.statuses.values().sum()),
            keys_per_s: per_s(operations) * f64::from(load.number),
            latency_ms: Times::of(&counts.times),
            enc_latency_ms: Times::of_some(&counts.enc_times),
            dec_latency_ms: Times::of_some(&counts.dec_times),
            statuses: counts.statuses.clone(),
            refusals: counts.refusals.clone(),
            troubles: counts.troubles.clone(),
            cpu_counted_s: used_for,
            client_cpu_s: measured.used.client,
            servers: measured.used.servers.clone(),
            others_cpu_s: others.max(0.0),
            stolen_cpu_s: measured.used.stolen,
            server_cpu_us_per_operation: has_servers
                .then(|| of_servers * 1e6 * seconds / used_for / float(operations)),
            ready_before: None,
            ready_after: None,
            reserve_share: None,
            known_before: None,
            known_after: None,
            over_time: OverTime::of(&measured.windows),
            windows: measured.windows,
            twins: None,
        };
        (run, measured.answers)
    }

    /// With the part of `operations`, of `load`, whose keys were ready before.
    pub(super) fn with_reserve_share(mut self, operations: u64, load: &Load) -> Self {
        if load.operation == Operation::Dec || load.slaves.is_some() {
            return self;
        }
        let fewer =
            self.ready_before.zip(self.ready_after).map(|(before, after)| before.saturating_sub(after));
        let delivered = float(operations) * f64::from(load.number);
        self.reserve_share = fewer.and_then(|fewer| over(float(fewer), delivered));
        self
    }

    fn has_errors(&self) -> bool {
        !self.troubles.is_empty() || self.statuses.keys().any(|status| *status != 200)
    }
}

/// The baseline, then the KMEs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Round {
    /// The baseline.
    pub baseline: Option<Run>,
    /// The KMEs.
    pub kme: Run,
}

/// Medians over rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Operations a second.
    pub operations_per_s: f64,
    /// Keys a second.
    pub keys_per_s: f64,
    /// Half of the operations were faster.
    pub p50_ms: f64,
    /// 99 in a hundred operations were faster.
    pub p99_ms: f64,
    /// Of all servers together, for one operation.
    pub server_cpu_us_per_operation: Option<f64>,
}

impl Figures {
    fn of<'a>(runs: impl Iterator<Item = &'a Run> + Clone) -> Option<Self> {
        let middle = |value: fn(&Run) -> f64| median(runs.clone().map(value).collect());
        let cpu = runs.clone().filter_map(|run| run.server_cpu_us_per_operation).collect();
        Some(Self {
            operations_per_s: middle(|run| run.operations_per_s)?,
            keys_per_s: middle(|run| run.keys_per_s)?,
            p50_ms: middle(|run| run.latency_ms.p50)?,
            p99_ms: middle(|run| run.latency_ms.p99)?,
            server_cpu_us_per_operation: median(cpu),
        })
    }
}

/// The median of `values`: for an even number, the mean of the two middle ones.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// KMEs compared with the baseline, over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// The least of all rounds.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `enc`, `dec`, `pair` or `handshake`.
    pub operation: &'static str,
    /// When the keys are made: `sustained`, while they are asked for, or `stocked`, before the clock runs.
    pub supply: Supply,
    /// For `dec`: `newest` or `random`.
    pub order: Option<&'static str>,
    /// Version of HTTP.
    pub http: u8,
    /// Connections at once.
    pub connections: usize,
    /// Requests at a time on each connection.
    pub streams: usize,
    /// Threads of the client.
    pub client_threads: usize,
    /// Processors of this machine.
    pub processors: usize,
    /// Keys of one request.
    pub number: u32,
    /// Bits of a key.
    pub key_bits: u32,
    /// Operations due each second; `None` for as many as possible.
    pub rate: Option<f64>,
    /// Operations a second of the KMEs divided by those of the baseline: the median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// The same with the least and the greatest.
    pub ratio_of_operations_per_s: Option<Ratio>,
    /// The same for the 99th percentile: above 1, the KMEs are slower.
    pub ratio_of_p99: Option<Ratio>,
    /// Processor time of the baseline for one operation divided by that of the KMEs.
    pub ratio_of_cpu: Option<Ratio>,
    /// Medians of the baseline.
    pub baseline: Option<Figures>,
    /// Medians of the KMEs.
    pub kme: Option<Figures>,
    /// Of all rounds together.
    pub twins: Twins,
    /// The rounds.
    pub rounds: Vec<Round>,
}

impl Report {
    pub(super) fn new(setup: &Setup, key_bits: u32, rounds: Vec<Round>) -> Self {
        let load = &setup.load;
        let pairs = || rounds.iter().filter_map(|round| Some((round.baseline.as_ref()?, &round.kme)));
        let ratio = |value: fn(&Run, &Run) -> Option<f64>| {
            let mut ratios: Vec<f64> = pairs().filter_map(|(baseline, kme)| value(baseline, kme)).collect();
            ratios.sort_by(f64::total_cmp);
            Some(Ratio { min: *ratios.first()?, max: *ratios.last()?, median: median(ratios)? })
        };
        let of_operations = ratio(|baseline, kme| over(kme.operations_per_s, baseline.operations_per_s));
        let twins = rounds.iter().filter_map(|round| round.kme.twins).fold(Twins::default(), Twins::and);
        Self {
            operation: load.operation.name(),
            supply: setup.supply(),
            order: (load.operation == Operation::Dec).then(|| load.order.name()),
            http: load.http.number(),
            connections: load.connections,
            streams: load.http.streams(),
            client_threads: load.threads,
            processors: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            number: load.number,
            key_bits,
            rate: load.rate,
            ratio: of_operations.map(|ratio| ratio.median),
            ratio_of_operations_per_s: of_operations,
            ratio_of_p99: ratio(|baseline, kme| over(kme.latency_ms.p99, baseline.latency_ms.p99)),
            ratio_of_cpu: ratio(|baseline, kme| {
                over(baseline.server_cpu_us_per_operation?, kme.server_cpu_us_per_operation?)
            }),
            baseline: Figures::of(rounds.iter().filter_map(|round| round.baseline.as_ref())),
            kme: Figures::of(rounds.iter().map(|round| &round.kme)),
            twins,
            rounds,
        }
    }

    /// Whether any request failed.
    pub fn has_errors(&self) -> bool {
        self.rounds.iter().any(|round| round.kme.has_errors())
    }

    /// The report as a table.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        let load = match self.rate {
            Some(rate) => format!("{rate} operations due a second"),
            None => "as fast as possible".to_owned(),
        };
        let _ = writeln!(
            text,
            "{}, {}: HTTP/{}, {} connections x {} at a time, {} key(s) of {} bits a request, {load}",
            self.operation,
            self.supply_text(),
            self.http,
            self.connections,
            self.streams,
            self.number,
            self.key_bits
        );
        let _ = writeln!(
            text,
            "{:<8} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>11} {:>8}",
            "", "ops/s", "keys/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "server us", "others"
        );
        for round in &self.rounds {
            for (name, run) in [("baseline", round.baseline.as_ref()), ("kme", Some(&round.kme))] {
                if let Some(run) = run {
                    text.push_str(&row(name, run));
                }
            }
            text.push_str(&details(&round.kme));
        }
        text.push_str(&self.warning().unwrap_or_default());
        for (name, ratio) in [
            ("ops/s, KMEs / baseline", self.ratio_of_operations_per_s),
            ("p99, KMEs / baseline", self.ratio_of_p99),
            ("server time, baseline / KMEs", self.ratio_of_cpu),
        ] {
            if let Some(Ratio { median, min, max }) = ratio {
                let _ = writeln!(text, "{name:<30} {median:.3} [{min:.3}, {max:.3}]");
            }
        }
        let Twins { compared, different, missing, repeated, malformed } = self.twins;
        let _ = writeln!(
            text,
            "{compared} keys compared with their twins: {different} different, {missing} missing, {repeated} \
             repeated, {malformed} answers malformed"
        );
        text
    }
}

impl Report {
    /// When the keys are made, in a word and its meaning.
    fn supply_text(&self) -> String {
        let Some(order) = self.order else {
            return match self.supply {
                Supply::Sustained => "sustained (keys are made while they are asked for)".to_owned(),
                Supply::Stocked => "stocked (keys were made before the clock ran)".to_owned(),
            };
        };
        let known = self.rounds.iter().filter_map(|round| round.kme.known_before).min().unwrap_or_default();
        match order {
            "random" => format!("stocked (any of {known} keys that were fetched before the clock ran)"),
            _ => format!("stocked (the newest of {known} keys that were fetched before the clock ran)"),
        }
    }

    /// That what is called sustained was not.
    fn warning(&self) -> Option<String> {
        let shares = self.rounds.iter().filter_map(|round| round.kme.reserve_share);
        let most = shares.reduce(f64::max).filter(|most| *most > RESERVE_SHARE_MAX)?;
        (self.supply == Supply::Sustained).then(|| {
            format!(
                "{:.0}% of the keys were ready before: measure for longer to see what can be sustained\n",
                100.0 * most
            )
        })
    }
}

/// Lines about parts of a run: windows of time, and the two requests of a pair.
fn details(run: &Run) -> String {
    let mut text = String::new();
    if let (Some(enc), Some(dec)) = (run.enc_latency_ms, run.dec_latency_ms) {
        let _ = writeln!(
            text,
            "{:<8} enc_keys: p50 {:.3}, p99 {:.3} ms; dec_keys: p50 {:.3}, p99 {:.3} ms",
            "", enc.p50, enc.p99, dec.p50, dec.p99
        );
    }
    if let Some(OverTime { windows, window_s, operations_per_s: Course { first, last, worst }, p99_ms }) =
        run.over_time
    {
        let _ = write!(
            text,
            "{:<8} {windows} windows of {window_s:.3} s: ops/s first {first:.0}, last {last:.0}, least {worst:.0}",
            ""
        );
        if let Some(Course { first, last, worst }) = p99_ms {
            let _ = write!(text, "; p99 ms first {first:.3}, last {last:.3}, longest {worst:.3}");
        }
        text.push('\n');
    }
    for (status, said) in &run.refusals {
        let _ = writeln!(text, "{:<8} the first {status} says: {said}", "");
    }
    text
}

fn over(above: f64, below: f64) -> Option<f64> {
    (below > 0.0).then(|| above / below)
}

fn row(name: &str, run: &Run) -> String {
    let Times { p50, p90, p99, p99_9, .. } = run.latency_ms;
    let cpu = run.server_cpu_us_per_operation.map_or("-".to_owned(), |us| format!("{us:.1}"));
    let mut text = format!(
        "{name:<8} {:>10.0} {:>10.0} {p50:>9.3} {p90:>9.3} {p99:>9.3} {p99_9:>9.3} {cpu:>11} {:>7.0}%",
        run.operations_per_s,
        run.keys_per_s,
        100.0 * run.others_cpu_s / run.cpu_counted_s.max(1e-9),
    );
    if let (Some(before), Some(after)) = (run.ready_before, run.ready_after) {
        let _ = write!(text, "  ready {before} -> {after}");
    }
    if run.has_errors() {
        let _ = write!(text, "  answers {:?} {:?}", run.statuses, run.troubles);
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
