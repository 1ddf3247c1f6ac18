//! `qkd014 bench`: load at the command line, and the baseline server that it starts beside itself.
//!
//! Exit codes: 0 measured, and every key equals its twin; 1 failed; 2 wrong usage or unusable files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use clap::{Args, ValueEnum};
use mtls::TlsFiles;

use super::demo::Manifest;
use super::outcome::{Failure, Outcome, block_on};
use crate::bench::{self, Baseline, End, Http, Load, News, Operation, Order, Setup, baseline};
use crate::credentials::Credentials;
use crate::https::KmeUrl;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What to measure
    #[arg(long, value_enum, default_value = "enc")]
    op: OpArg,
    /// Take the KMEs, the CA and the SAEs from the demo.json of `dqkd demo`; other options override it
    #[arg(long, value_name = "FILE")]
    demo: Option<PathBuf>,
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// dec: which keys to retrieve first, of those that were fetched and not yet retrieved
    #[arg(long, value_enum, default_value = "newest")]
    order: OrderArg,
    /// Before each round measure a server that does nothing, and print the ratio
    #[arg(long)]
    baseline: bool,
    /// Seconds for which it is measured; --duration unless given
    #[arg(long, value_name = "SECS", requires = "baseline", value_parser = positive)]
    baseline_duration: Option<f64>,
    /// CA certificates that the SAEs' certificates come from, for the baseline server; --ca unless given
    #[arg(long, value_name = "FILE", requires = "baseline")]
    baseline_ca: Option<PathBuf>,
    /// The baseline server's certificate, which must come from --ca; a throw-away one unless given
    #[arg(long, value_name = "FILE", requires = "baseline_key")]
    baseline_cert: Option<PathBuf>,
    /// Private key of --baseline-cert
    #[arg(long, value_name = "FILE", requires = "baseline_cert")]
    baseline_key: Option<PathBuf>,
    /// Rounds of measurement; 5 with --baseline, else 1, unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// dec: keys to have fetched before the clock runs (33000 a second unless given); what a round leaves is part of the next one's. Others: ready keys to wait for first; the report then says "stocked" instead of "sustained"
    #[arg(long, value_name = "KEYS")]
    stock: Option<u64>,
    /// Most operations of a round whose keys are compared with their twins
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    compare: usize,
    /// Print a line of JSON for each window of this length; the report is then one line, too. It has the windows in any case, and unless this says otherwise each is a tenth of --duration, from 1 to 10 seconds
    #[arg(long, value_name = "SECS", requires = "json", value_parser = not_short)]
    window: Option<f64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Any pair of KMEs.
#[derive(Debug, Args)]
struct PairArgs {
    /// The KME that serves A, the master
    #[arg(long, value_name = "URL", required_unless_present = "demo")]
    url_a: Option<KmeUrl>,
    /// The KME that serves B, the slave
    #[arg(long, value_name = "URL", required_unless_present = "demo")]
    url_b: Option<KmeUrl>,
    /// CA certificates that the KMEs' certificates come from; PEM
    #[arg(long, value_name = "FILE", required_unless_present = "demo")]
    ca: Option<PathBuf>,
    /// SAE ID of A
    #[arg(long, value_name = "ID", required_unless_present = "demo")]
    sae_a: Option<String>,
    /// SAE ID of B
    #[arg(long, value_name = "ID", required_unless_present = "demo")]
    sae_b: Option<String>,
    /// ID of A's KME, for --path kme
    #[arg(long, value_name = "ID")]
    kme_a: Option<String>,
    /// ID of B's KME, for --path kme
    #[arg(long, value_name = "ID")]
    kme_b: Option<String>,
    /// A's certificate and intermediates; PEM
    #[arg(long, value_name = "FILE", requires = "key_a", required_unless_present = "demo")]
    cert_a: Option<PathBuf>,
    /// A's private key; PEM
    #[arg(long, value_name = "FILE", requires = "cert_a")]
    key_a: Option<PathBuf>,
    /// B's certificate and intermediates; PEM
    #[arg(long, value_name = "FILE", requires = "key_b", required_unless_present = "demo")]
    cert_b: Option<PathBuf>,
    /// B's private key; PEM
    #[arg(long, value_name = "FILE", requires = "cert_b")]
    key_b: Option<PathBuf>,
    /// Whether paths name SAEs or KMEs
    #[arg(long, value_enum, default_value = "sae")]
    path: PathArg,
}

/// Kind and amount.
#[derive(Debug, Args)]
struct LoadArgs {
    /// Version of HTTP
    #[arg(long, value_name = "1|2", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    http: u8,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    connections: u32,
    /// Requests at a time on each connection, with --http 2
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    streams: u32,
    /// Threads of the client; half of the processors unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Keys of one request
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    number: u32,
    /// enc, handshake: name N slaves one after the other: B's ID with -1, -2 to -N. Needs --compare 0: B cannot fetch their keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    slaves: Option<u32>,
    /// Size of a key in bits; the KME's choice unless given
    #[arg(long, value_name = "BITS")]
    size: Option<u32>,
    /// Seconds of a round that are measured
    #[arg(long, value_name = "SECS", default_value_t = 10.0, value_parser = positive)]
    duration: f64,
    /// Seconds under load before the clock runs
    #[arg(long, value_name = "SECS", default_value_t = 1.0, value_parser = not_negative)]
    warmup: f64,
    /// Operations a second, due whether or not earlier ones have ended; an operation's time starts when it is due
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,
    /// Seconds to wait for each answer
    #[arg(long, value_name = "SECS", default_value_t = 10.0, value_parser = positive)]
    timeout: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OpArg {
    /// enc_keys at the first KME
    Enc,
    /// dec_keys at the second KME of keys fetched before the clock runs
    Dec,
    /// enc_keys, then dec_keys of the same keys
    Pair,
    /// A new connection, one enc_keys, the end of the connection
    Handshake,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OrderArg {
    /// The last that were fetched
    Newest,
    /// Any of them, each as likely as the others
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PathArg {
    /// SAEs
    Sae,
    /// KMEs
    Kme,
}

const SECS_MAX: f64 = 1e6;

fn positive(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|n| if n > 0.0 { Ok(n) } else { Err("it must be above 0".to_owned()) })
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=SECS_MAX).contains(&number) { Ok(number) } else { Err(format!("0 up to {SECS_MAX}")) }
}

/// Shorter windows would end faster than they can be printed.
const WINDOW_MIN_SECS: f64 = 0.1;

fn not_short(text: &str) -> Result<f64, String> {
    let least = |n| if n >= WINDOW_MIN_SECS { Ok(n) } else { Err(format!("at least {WINDOW_MIN_SECS}")) };
    not_negative(text).and_then(least)
}

pub(super) fn run(args: BenchArgs) -> Outcome {
    let (as_json, in_lines) = (args.json, args.window.is_some());
    let setup = args.setup().map_err(|error| Failure::Usage(format!("{error:#}")))?;
    let tell = |news| match news {
        News::Step(text) => eprintln!("{text}"),
        News::Window(window) if in_lines => println!("{}", serde_json::json!({ "window": window })),
        News::Window(_) => {}
    };
    let report = block_on(bench::run(&setup, tell))?.map_err(anyhow::Error::from)?;
    if in_lines {
        println!("{}", serde_json::to_string(&report).map_err(anyhow::Error::from)?);
    } else if as_json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)?);
    } else {
        print!("{}", report.to_table());
    }
    if !report.twins.are_fine() {
        return Err(anyhow!("keys are missing or wrong: {:?}", report.twins).into());
    }
    Ok(())
}

impl BenchArgs {
    fn setup(self) -> anyhow::Result<Setup> {
        let demo = self.demo.as_deref().map(Demo::read).transpose()?;
        let mut servers = demo.as_ref().map(|demo| demo.pool_servers.clone()).unwrap_or_default();
        let pair = self.pair.or(demo);
        let ca = pair.ca.clone().context("give --ca")?;
        let a = pair.end(&ca, (&pair.url_a, &pair.cert_a, &pair.key_a), (&pair.sae_a, &pair.kme_a), "a")?;
        let b = pair.end(&ca, (&pair.url_b, &pair.cert_b, &pair.key_b), (&pair.sae_b, &pair.kme_b), "b")?;
        servers.push(("KME of A".to_owned(), a.url.to_string()));
        servers.push(("KME of B".to_owned(), b.url.to_string()));
        let certificate = self.baseline_cert.zip(self.baseline_key);
        let client_ca = self.baseline_ca.unwrap_or(ca);
        let duration = self.baseline_duration.map(Duration::from_secs_f64);
        let baseline = self.baseline.then_some(Baseline { client_ca, certificate, duration });
        Ok(Setup {
            a,
            b,
            rounds: self.rounds.map_or(if baseline.is_some() { 5 } else { 1 }, usize::from),
            baseline,
            load: self.load.load(self.op, self.order, self.compare)?,
            window: self.window.map(Duration::from_secs_f64),
            stock: self.stock,
            compared_max: self.compare,
            servers,
        })
    }
}

impl LoadArgs {
    fn load(self, op: OpArg, order: OrderArg, compare: usize) -> anyhow::Result<Load> {
        ensure!(self.http == 2 || self.streams == 1, "--streams needs --http 2");
        let is_alone = matches!(op, OpArg::Enc | OpArg::Handshake) && compare == 0;
        let has_order = matches!((op, order), (OpArg::Dec, _) | (_, OrderArg::Newest));
        ensure!(has_order, "--order needs --op dec");
        ensure!(self.slaves.is_none() || is_alone, "--slaves needs --op enc or handshake, and --compare 0");
        let http = match self.http {
            1 => Http::V1,
            _ => Http::V2 { streams: usize::try_from(self.streams)? },
        };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Load {
            operation: match op {
                OpArg::Enc => Operation::Enc,
                OpArg::Dec => Operation::Dec,
                OpArg::Pair => Operation::Pair,
                OpArg::Handshake => Operation::Handshake,
            },
            order: match order {
                OrderArg::Newest => Order::Newest,
                OrderArg::Random => Order::Random,
            },
            http,
            connections: usize::try_from(self.connections)?,
            threads: self.threads.map_or(processors.div_ceil(2), usize::from),
            number: self.number,
            slaves: self.slaves.map(usize::try_from).transpose()?,
            size_bits: self.size,
            warmup: Duration::from_secs_f64(self.warmup),
            duration: Duration::from_secs_f64(self.duration),
            rate: self.rate,
            timeout: Duration::from_secs_f64(self.timeout),
        })
    }
}

impl PairArgs {
    /// The options given here; for the others, the demo's values.
    fn or(self, demo: Option<Demo>) -> Self {
        let Some(Demo { pair: demo, .. }) = demo else { return self };
        Self {
            url_a: self.url_a.or(demo.url_a),
            url_b: self.url_b.or(demo.url_b),
            ca: self.ca.or(demo.ca),
            sae_a: self.sae_a.or(demo.sae_a),
            sae_b: self.sae_b.or(demo.sae_b),
            kme_a: self.kme_a.or(demo.kme_a),
            kme_b: self.kme_b.or(demo.kme_b),
            cert_a: self.cert_a.or(demo.cert_a),
            key_a: self.key_a.or(demo.key_a),
            cert_b: self.cert_b.or(demo.cert_b),
            key_b: self.key_b.or(demo.key_b),
            path: self.path,
        }
    }

    fn end(
        &self,
        ca: &Path,
        (url, cert, key): (&Option<KmeUrl>, &Option<PathBuf>, &Option<PathBuf>),
        (sae, kme): (&Option<String>, &Option<String>),
        letter: &str,
    ) -> anyhow::Result<End> {
        let missing = |option: &str| format!("give --{option}-{letter}");
        let cert = cert.as_ref().with_context(|| missing("cert"))?;
        let key = key.as_ref().with_context(|| missing("key"))?;
        let (name, option) = match self.path {
            PathArg::Sae => (sae, "sae"),
            PathArg::Kme => (kme, "kme"),
        };
        Ok(End {
            url: url.clone().with_context(|| missing("url"))?,
            name: name.clone().with_context(|| missing(option))?,
            credentials: Credentials::from_pem_files(ca, cert, key)?,
        })
    }
}

/// The first two sites of a demo.
struct Demo {
    pair: PairArgs,
    pool_servers: Vec<(String, String)>,
}

impl Demo {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let manifest = Manifest::read(file)?;
        let [site_a, site_b, ..] = manifest.sites.as_slice() else {
            anyhow::bail!("{} has fewer than two sites", file.display())
        };
        let (Some(a), Some(b)) = (site_a.saes.first(), site_b.saes.first()) else {
            anyhow::bail!("a site of {} has no SAE", file.display())
        };
        let pair = PairArgs {
            url_a: Some(site_a.sae_url.clone()),
            url_b: Some(site_b.sae_url.clone()),
            ca: Some(manifest.ca.clone()),
            sae_a: Some(a.id.clone()),
            sae_b: Some(b.id.clone()),
            kme_a: Some(site_a.id.clone()),
            kme_b: Some(site_b.id.clone()),
            cert_a: Some(a.cert.clone()),
            key_a: Some(a.key.clone()),
            cert_b: Some(b.cert.clone()),
            key_b: Some(b.key.clone()),
            path: PathArg::Sae,
        };
        let pool_servers =
            manifest.pool_servers.iter().map(|pool| (pool.id.clone(), pool.url.clone())).collect();
        Ok(Self { pair, pool_servers })
    }
}

#[derive(Debug, Args)]
pub(super) struct BaselineServerArgs {
    #[arg(long, value_name = "FILE")]
    client_ca: PathBuf,
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    #[arg(long, value_name = "N")]
    number: u32,
    #[arg(long, value_name = "N")]
    key_bytes: usize,
}

/// Serves at a free port until its standard input ends, that is, until the process that started it ends.
pub(super) fn baseline_server(args: BaselineServerArgs) -> Outcome {
    let BaselineServerArgs { client_ca, cert, key, number, key_bytes } = args;
    let identity = match cert.zip(key) {
        Some((cert, key)) => baseline::Identity::from_files(TlsFiles { ca: client_ca, cert, key, crl: None }),
        None => baseline::Identity::throw_away(&client_ca),
    };
    let identity = identity.map_err(anyhow::Error::from)?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    block_on(async {
        let tcp = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        println!("{}", identity.ready_line(tcp.local_addr()?));
        baseline::serve(tcp, &identity, baseline::body(number, key_bytes)).await;
        Ok::<_, std::io::Error>(())
    })?
    .map_err(anyhow::Error::from)?;
    Ok(())
}
