//! Durations as people write them: a whole number and a unit.
//!
//! Parses and prints them. `checker` checks their ranges.

use std::time::Duration;

/// What an operator may write, for error messages.
pub(super) const DURATION_FORM: &str =
    "a whole number and a unit (ms, s, m, h, d), as in \"500ms\", \"30s\" or \"24h\"";

/// Longest duration of any setting in days: more than anybody needs, far below an overflow.
const MAX_DAYS: u64 = 3660;

/// `None` unless `text` is a whole number and a unit without a space, of at most ten years.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let ms = number.checked_mul(unit_ms)?;
    (ms <= MAX_DAYS * 86_400_000).then(|| Duration::from_millis(ms))
}

/// The shortest form that [`parse`] reads back.
pub(super) fn print(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms.is_multiple_of(unit_ms) && ms > 0 {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, ms) in [
            ("0s", 0),
            ("7ms", 7),
            ("30s", 30_000),
            ("2m", 120_000),
            ("24h", 86_400_000),
            ("3d", 259_200_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "24",
            "h",
            "24x",
            "-1s",
            "1.5h",
            " 1s",
            "1 s",
            "1h30m",
            "99999999999999999999s",
            "4000d",
            "1é",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn printing_reads_back() {
        for ms in [0, 1, 999, 1_000, 90_000, 3_600_000, 86_400_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse(&print(duration)), Some(duration));
        }
        assert_eq!(print(Duration::from_hours(24)), "1d");
    }
}
