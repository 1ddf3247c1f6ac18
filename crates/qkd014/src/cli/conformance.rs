//! `qkd014 conformance`: the black-box tester at the command line.
//!
//! Exit codes: 0 nothing failed; 1 something failed; 2 wrong usage or unusable files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::demo::Manifest;
use super::outcome::{Failure, Outcome, block_on};
use super::password::first_line;
use crate::conformance::{self, Hooks, Profile, Sae, Setup, TESTS};
use crate::credentials::Credentials;
use crate::https::KmeUrl;

/// The certificate of one SAE; options start with its letter.
macro_rules! sae_options {
    ($name:ident, $letter:literal, $who:literal) => {
        #[derive(Debug, Args)]
        struct $name {
            #[arg(id = concat!($letter, "-id"), long = concat!($letter, "-id"), value_name = "ID",
                        help = concat!("SAE ID of ", $who))]
            id: Option<String>,
            #[arg(id = concat!($letter, "-cert"), long = concat!($letter, "-cert"), value_name = "FILE",
                        requires = concat!($letter, "-key"), conflicts_with = concat!($letter, "-p12"),
                        help = "Its certificate and intermediates; PEM")]
            cert: Option<PathBuf>,
            #[arg(id = concat!($letter, "-key"), long = concat!($letter, "-key"), value_name = "FILE",
                        requires = concat!($letter, "-cert"), help = "Its private key; PEM")]
            key: Option<PathBuf>,
            #[arg(id = concat!($letter, "-p12"), long = concat!($letter, "-p12"), value_name = "FILE",
                        help = "Its certificate and key in one .p12 bundle")]
            p12: Option<PathBuf>,
            #[arg(id = concat!($letter, "-p12-password-file"), long = concat!($letter, "-p12-password-file"),
                        value_name = "FILE", requires = concat!($letter, "-p12"),
                        help = "File whose first line is the bundle's password")]
            p12_password_file: Option<PathBuf>,
        }

        impl From<$name> for SaeOptions {
            fn from($name { id, cert, key, p12, p12_password_file }: $name) -> Self {
                Self { letter: $letter, id, cert, key, p12, p12_password_file }
            }
        }
    };
}

sae_options!(OptionsOfA, "a", "A, the master of most tests, served by the first KME");
sae_options!(OptionsOfB, "b", "B, the slave of most tests, served by the second KME");
sae_options!(OptionsOfC, "c", "C, a third registered SAE (optional)");
sae_options!(OptionsOfX, "x", "X, whom the KMEs have to refuse although its CA is trusted (optional)");
sae_options!(OptionsOfY, "y", "Y, whose certificate is of a CA that the KMEs do not trust (optional)");

/// The options of one SAE.
struct SaeOptions {
    letter: &'static str,
    id: Option<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    p12: Option<PathBuf>,
    p12_password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ConformanceArgs {
    /// The KME that serves A, for example https://kme-a.example:8443
    #[arg(long, value_name = "URL", required_unless_present = "demo")]
    kme_a: Option<KmeUrl>,
    /// The KME that serves B
    #[arg(long, value_name = "URL", required_unless_present = "demo")]
    kme_b: Option<KmeUrl>,
    /// The KME that serves C; B's unless given
    #[arg(long, value_name = "URL")]
    kme_c: Option<KmeUrl>,
    /// CA certificates that the KMEs' certificates come from; PEM
    #[arg(long, value_name = "FILE", required_unless_present = "demo")]
    ca: Option<PathBuf>,
    /// Take the KMEs, the CA and the SAEs A, B, C from the demo.json of `dqkd demo`; other options override it
    #[arg(long, alias = "demo-json", value_name = "FILE")]
    demo: Option<PathBuf>,
    #[command(flatten)]
    a: OptionsOfA,
    #[command(flatten)]
    b: OptionsOfB,
    #[command(flatten)]
    c: OptionsOfC,
    #[command(flatten)]
    x: OptionsOfX,
    #[command(flatten)]
    y: OptionsOfY,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Debug, Args)]
struct Scope {
    /// How strict to be
    #[arg(long, value_enum, default_value = "lenient")]
    profile: ProfileArg,
    /// How the report is printed
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Numbers of the tests to run, for example 8,10-16; all unless given
    #[arg(long, value_name = "LIST")]
    only: Option<String>,
    /// Most keys that the run may use up
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_keys: usize,
    /// Seconds to wait for each answer
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// Run T45, which empties the store of A and B (within --max-keys)
    #[arg(long)]
    drain: bool,
    /// Shell command that stops the supply of new key material before T45
    #[arg(long, value_name = "CMD", requires = "drain")]
    stop_supply_hook: Option<String>,
    /// Shell command that resumes it after T45
    #[arg(long, value_name = "CMD", requires = "stop_supply_hook")]
    resume_supply_hook: Option<String>,
    /// Shell command that kills (SIGKILL) and starts both KMEs, and ends when they serve: T48
    #[arg(long, value_name = "CMD")]
    restart_hook: Option<String>,
    /// Shell command that cuts the link between the KMEs: T49
    #[arg(long, value_name = "CMD", requires = "heal_hook")]
    cut_hook: Option<String>,
    /// Shell command that heals the link
    #[arg(long, value_name = "CMD", requires = "cut_hook")]
    heal_hook: Option<String>,
    /// A registered SAE ID with a space, `/`, `%` or letters beyond ASCII: T44
    #[arg(long, value_name = "ID")]
    odd_id: Option<String>,
    /// One object of extension_mandatory that the KME supports and cannot meet: T24
    #[arg(long, value_name = "JSON")]
    unmet_extension: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileArg {
    /// Also the recommended reading of what the standard leaves open
    Strict,
    /// What the standard says with "shall", and what keeps keys safe
    Lenient,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For continuous integration
    Junit,
}

pub(super) fn run(args: ConformanceArgs) -> Outcome {
    let format = args.scope.format;
    let setup = args.setup().map_err(|error| Failure::Usage(format!("{error:#}")))?;
    let report = block_on(conformance::run(setup))?;
    match format {
        Format::Table => print!("{}", report.to_table()),
        Format::Json => println!("{:#}", report.to_json()),
        Format::Junit => print!("{}", report.to_junit().map_err(anyhow::Error::from)?),
    }
    match report.failed() {
        0 => Ok(()),
        failed => Err(anyhow!("{failed} of {} tests failed", report.rows.len()).into()),
    }
}

impl ConformanceArgs {
    fn setup(self) -> anyhow::Result<Setup> {
        let demo = self.demo.as_deref().map(Demo::read).transpose()?.unwrap_or_default();
        let ca = self.ca.or(demo.ca).context("give --ca")?;
        let kme_a = self.kme_a.or(demo.a.url.clone()).context("give --kme-a")?;
        let kme_b = self.kme_b.or(demo.b.url.clone()).context("give --kme-b")?;
        // The demo's C belongs to the demo's KME; another C to B's KME, unless an option says otherwise.
        let has_own_c = self.c.id.is_some();
        let kme_c = self.kme_c.or(demo.c.url.clone().filter(|_| !has_own_c)).unwrap_or_else(|| kme_b.clone());
        let a = needed(SaeOptions::from(self.a).or(demo.a), &ca, &kme_a)?;
        let b = needed(SaeOptions::from(self.b).or(demo.b), &ca, &kme_b)?;
        anyhow::ensure!(a.id != b.id, "A and B are the same SAE");
        let stranger = |options: SaeOptions| {
            let id = format!("({})", options.letter.to_ascii_uppercase());
            let id = options.id.clone().unwrap_or(id);
            SaeOptions { id: Some(id), ..options }.open(&ca, &kme_a)
        };
        let scope = self.scope;
        let parse = |text: &String| serde_json::from_str::<Map<String, Value>>(text);
        let unmet = scope.unmet_extension.as_ref().map(parse).transpose();
        Ok(Setup {
            a,
            b,
            c: SaeOptions::from(self.c).or(demo.c).open(&ca, &kme_c)?,
            x: stranger(self.x.into())?,
            y: stranger(self.y.into())?,
            odd_id: scope.odd_id,
            unmet_extension: unmet.context("--unmet-extension is no JSON object")?,
            hooks: Hooks {
                restart: scope.restart_hook,
                cut: scope.cut_hook,
                heal: scope.heal_hook,
                stop_supply: scope.stop_supply_hook,
                resume_supply: scope.resume_supply_hook,
            },
            profile: match scope.profile {
                ProfileArg::Strict => Profile::Strict,
                ProfileArg::Lenient => Profile::Lenient,
            },
            max_keys: scope.max_keys,
            drain: scope.drain,
            only: scope.only.as_deref().map(numbers).transpose()?.unwrap_or_default(),
            timeout: Duration::from_secs(scope.timeout),
        })
    }
}

fn needed(options: SaeOptions, ca: &Path, url: &KmeUrl) -> anyhow::Result<Sae> {
    let letter = options.letter;
    let missing = || format!("give --{letter}-id, and --{letter}-cert with --{letter}-key or --{letter}-p12");
    options.open(ca, url)?.with_context(missing)
}

impl SaeOptions {
    /// The options given here; for the others, the demo's values.
    fn or(self, demo: DemoSae) -> Self {
        let is_given = self.id.is_some() || self.cert.is_some() || self.p12.is_some();
        if is_given { self } else { Self { id: demo.id, cert: demo.cert, key: demo.key, ..self } }
    }

    /// Reads the files. `None` if none are given.
    fn open(&self, ca: &Path, url: &KmeUrl) -> anyhow::Result<Option<Sae>> {
        let letter = self.letter;
        let credentials = match (&self.cert, &self.key, &self.p12) {
            (Some(cert), Some(key), _) => Credentials::from_pem_files(ca, cert, key)?,
            (_, _, Some(p12)) => {
                let password = self.p12_password_file.as_deref().map(first_line).transpose()?;
                Credentials::from_p12_file(ca, p12, &password.unwrap_or_default())?
            }
            _ if self.id.is_none() || ["x", "y"].contains(&letter) => return Ok(None),
            _ => anyhow::bail!("--{letter}-id needs --{letter}-cert with --{letter}-key, or --{letter}-p12"),
        };
        let id = self.id.clone().with_context(|| format!("give --{letter}-id"))?;
        Ok(Some(Sae { id, url: url.clone(), credentials }))
    }
}

/// The SAEs of a demo.
#[derive(Default)]
struct Demo {
    ca: Option<PathBuf>,
    a: DemoSae,
    b: DemoSae,
    c: DemoSae,
}

#[derive(Default)]
struct DemoSae {
    url: Option<KmeUrl>,
    id: Option<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Demo {
    /// A is the first SAE of the first site, B that of the second. C is at the third site if there is one,
    /// otherwise at B's.
    fn read(file: &Path) -> anyhow::Result<Self> {
        let manifest = Manifest::read(file)?;
        let sae = |site: usize, index: usize| {
            let site = manifest.sites.get(site)?;
            let sae = site.saes.get(index)?;
            Some(DemoSae {
                url: Some(site.sae_url.clone()),
                id: Some(sae.id.clone()),
                cert: Some(sae.cert.clone()),
                key: Some(sae.key.clone()),
            })
        };
        Ok(Self {
            a: sae(0, 0).unwrap_or_default(),
            b: sae(1, 0).unwrap_or_default(),
            c: sae(2, 0).or_else(|| sae(1, 1)).unwrap_or_default(),
            ca: Some(manifest.ca.clone()),
        })
    }
}

/// `8,10-16`.
fn numbers(list: &str) -> anyhow::Result<Vec<u32>> {
    let mut all = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let text = text.trim().trim_start_matches(['T', 't']);
            text.parse().ok().filter(|number| (1..=TESTS).contains(number))
        };
        let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
        let (first, last): (u32, u32) =
            range.with_context(|| format!("--only: `{part}` is not a test; there are 1 to {TESTS}"))?;
        all.extend(first..=last);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_by_number_or_range() {
        assert_eq!(numbers("8, T10-12,54").unwrap(), [8, 10, 11, 12, 54]);
        for wrong in ["", "0", "55", "x", "12-10", "1,,2", "-3", "1-60"] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
    }
}
