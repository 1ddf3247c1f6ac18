//! `dqkd store copy`: copies a store to another database.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use kme::{Clock as _, SystemClock};

use super::{Failure, Outcome, block_on};
use crate::app;
use crate::config::{self, ConfigFile, KmeConfig};
use crate::store::{KeyEncryptionKeys, Store, StoreError};

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Copy a store to an empty database, of the same kind or the other: everything or nothing
    ///
    /// Stop its daemons first. Never start one on the old database again: it would hand out the same keys
    /// (docs/deployment.md).
    Copy(CopyArgs),
}

#[derive(Debug, Args)]
struct CopyArgs {
    /// Store to copy: sqlite://FILE, postgres://USER@HOST/DATABASE (password in PGPASSWORD or a .pgpass file), or the
    /// configuration file of its KME
    from: String,
    /// Where to copy it: the same forms
    to: String,
    /// File with the key-encryption key of FROM; needed if FROM is not a configuration file
    #[arg(long, value_name = "FILE")]
    kek_file: Option<PathBuf>,
}

/// A store, with the configuration of its KME if that was given.
struct Place {
    name: String,
    url: String,
    config: Option<Box<KmeConfig>>,
}

pub(super) fn run(args: StoreArgs) -> Outcome {
    match args.command {
        StoreCommand::Copy(args) => copy(&args),
    }
}

fn copy(args: &CopyArgs) -> Outcome {
    let (from, to) = (Place::of(&args.from)?, Place::of(&args.to)?);
    let keks = match (&args.kek_file, &from.config) {
        (Some(file), _) => KeyEncryptionKeys::from_file(file).map_err(anyhow::Error::from)?,
        (None, Some(config)) => app::key_encryption_keys(&config.store.kek).map_err(anyhow::Error::from)?,
        (None, None) => {
            let text = "FROM is not a configuration file: give --kek-file, so that every seal can be checked";
            return Err(Failure::Usage(text.to_owned()));
        }
    };
    let copied = block_on(Store::copy(&from.url, &to.url, keks, SystemClock.now()))?;
    let copied = copied.map_err(|error| match error {
        StoreError::Uncertain(_) => anyhow!(
            "the connection to the target was lost during the commit, so it has everything or nothing. Try again: if it \
             has everything, it is refused as not empty"
        ),
        error => anyhow!(error),
    });
    let copied = copied.with_context(|| format!("{} was not copied to {}", from.name, to.name))?;
    println!("{} -> {}: {copied}", from.name, to.name);
    println!("Start no daemon on {} any more: it would hand out keys that {} has.", from.name, to.name);
    Ok(())
}

impl Place {
    fn of(text: &str) -> Result<Self, Failure> {
        if text.starts_with("sqlite:") {
            return Ok(Self { name: text.to_owned(), url: text.to_owned(), config: None });
        }
        if text.contains("://") {
            Store::check_url(text).map_err(|error| Failure::Usage(error.to_string()))?;
            let (scheme, rest) = text.split_once("://").unwrap_or_default();
            // Without user and options, which may hold a password.
            let name = rest.rsplit('@').next().unwrap_or_default().split('?').next().unwrap_or_default();
            let (name, url) = (format!("{scheme}://{name}"), text.to_owned());
            return Ok(Self { name, url, config: None });
        }
        let file = Path::new(text);
        match config::load(file, config::process_environment())? {
            ConfigFile::Kme(config) => {
                let url = app::store_url(&config.store)?;
                Ok(Self { name: config.store.location.to_string(), url, config: Some(config) })
            }
            ConfigFile::Pool(_) => {
                Err(Failure::Usage(format!("{text} configures a pool server, which has no store")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_place_has_no_password() {
        for (text, name) in [
            ("postgres://u:p@h:1/d?sslmode=disable", "postgres://h:1/d"),
            ("postgres:///d?host=/run/postgresql", "postgres:///d"),
            ("sqlite:///tmp/a.db", "sqlite:///tmp/a.db"),
        ] {
            let Ok(place) = Place::of(text) else { panic!("{text} is refused") };
            assert_eq!(place.name, name);
        }
    }
}
