//! Logging: the subscriber, and what happens to a panic.
//!
//! Owns what reaches standard error (`docs/logging.md`). Nothing that may hold a secret gets through: libraries that
//! could print bytes of a connection are limited to `info`, and the run-time text of a panic is not logged.

use std::any::Any;
use std::io::IsTerminal as _;
use std::panic::{Location, PanicHookInfo};
use std::sync::Once;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Starts logging to standard error, filtered by `DQKD_LOG`, else `RUST_LOG`, else `[log] level`.
///
/// Does nothing if a subscriber is set already.
pub fn init(log: &LogConfig) {
    let variable = |name| std::env::var(name).ok();
    let (directives, complaint) = directives(log.level, variable("DQKD_LOG"), variable("RUST_LOG"));
    let filter = EnvFilter::new(directives).and(filter_fn(may_be_logged));
    let writer = std::io::stderr;
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => Box::new(
            tracing_subscriber::fmt::layer()
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(writer)
                .with_filter(filter),
        ),
        LogFormat::Json => Box::new(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_writer(writer)
                .with_filter(filter),
        ),
    };
    let started = tracing_subscriber::registry().with(layer).try_init().is_ok();
    if let Some(complaint) = complaint.filter(|_| started) {
        tracing::warn!("{complaint}");
    }
}

/// Makes a panic an error event with its place, without its run-time text.
///
/// For programs only: in tests it would hide the messages of failed assertions.
pub fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(on_panic)));
}

fn on_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), Location::to_string);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let text = harmless_text(info.payload());
    if tracing::dispatcher::has_been_set() {
        tracing::error!(panic.location = %place, thread, "panic: {text}");
    } else {
        eprintln!("dqkd: panic in thread {thread} at {place}: {text}");
    }
}

/// A literal is part of the program and holds no secret; formatted text might.
fn harmless_text(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(text withheld: it may hold secrets)")
}

/// Whatever the filter, libraries do not print bytes of connections or values of statements.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    const CAPPED: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tokio_rustls", "sqlx"];
    let library = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !CAPPED.contains(&library)
}

/// The filter, and a complaint about a variable that cannot be parsed.
fn directives(
    level: LogLevel,
    dqkd_log: Option<String>,
    rust_log: Option<String>,
) -> (String, Option<String>) {
    let written = [("DQKD_LOG", dqkd_log), ("RUST_LOG", rust_log)]
        .into_iter()
        .find_map(|(name, text)| text.filter(|text| !text.trim().is_empty()).map(|text| (name, text)));
    match written {
        Some((_, text)) if EnvFilter::try_new(&text).is_ok() => (text, None),
        Some((name, text)) => {
            let complaint = format!(
                "{name}={text:?} is not a log filter and is ignored; an example of one: \"dqkd=debug,warn\""
            );
            (level.as_str().to_owned(), Some(complaint))
        }
        None => (level.as_str().to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_take_precedence_over_the_level_and_dqkd_log_over_rust_log() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(directives(LogLevel::Warn, None, None), ("warn".into(), None));
        assert_eq!(directives(LogLevel::Warn, text(" "), text("debug")).0, "debug");
        assert_eq!(directives(LogLevel::Warn, text("dqkd=trace"), text("debug")).0, "dqkd=trace");
    }

    #[test]
    fn a_bad_filter_is_named_and_the_level_stands() {
        let (used, complaint) = directives(LogLevel::Info, Some("dqkd=verbose=3".into()), None);
        assert_eq!(used, "info");
        assert!(complaint.unwrap().contains("DQKD_LOG"));
    }

    #[test]
    fn starting_twice_is_harmless() {
        let error_only = LogConfig { level: LogLevel::Error, format: LogFormat::Json };
        init(&error_only);
        init(&LogConfig::default());
    }

    #[test]
    fn the_text_of_a_panic_is_logged_only_when_it_is_a_literal() {
        let secret = format!("key {}", 7);
        let formatted = std::panic::catch_unwind(|| panic!("{secret}")).unwrap_err();
        assert!(!harmless_text(formatted.as_ref()).contains("key"));
        let literal = std::panic::catch_unwind(|| panic!("no pools left")).unwrap_err();
        assert_eq!(harmless_text(literal.as_ref()), "no pools left");
    }
}
