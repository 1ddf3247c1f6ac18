//! `dqkd pki`: a small certificate authority.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use kme::{Clock as _, OsRandom, SystemClock};
use pki::{Authority, Issued, Listed, NewAuthority, Order, Permits, Renewal, Role, State, describe};

#[derive(Debug, Args)]
pub(super) struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Make an authority: root, issuing CA, first revocation lists
    Init(InitArgs),
    /// Issue a certificate and, with a password, a .p12 bundle for curl and others
    Issue(IssueArgs),
    /// Issue a certificate again: same names and addresses, new key. The old one stays good until it is revoked
    Renew(RenewArgs),
    /// List all certificates and their state
    List {
        #[command(flatten)]
        dir: DirArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke certificates and write new revocation lists
    Revoke(RevokeArgs),
    /// Write new revocation lists
    Crl {
        #[command(flatten)]
        dir: DirArg,
        #[command(flatten)]
        life: CrlLife,
        #[command(flatten)]
        root: RootArg,
    },
    /// Describe the certificates and revocation lists of a PEM file
    Show {
        /// PEM file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct DirArg {
    /// The authority's folder
    #[arg(long, value_name = "DIR", default_value = "pki")]
    dir: PathBuf,
}

/// The passphrase of the root's private key.
#[derive(Debug, Args)]
struct RootArg {
    /// The passphrase of the root's private key is the first line of this file; or the environment variable
    /// DQKD_ROOT_PASSPHRASE holds it
    #[arg(long, value_name = "FILE")]
    root_passphrase_file: Option<PathBuf>,
}

impl RootArg {
    fn read(&self) -> anyhow::Result<Option<Zeroizing<String>>> {
        let passphrase = match &self.root_passphrase_file {
            Some(file) => Some(first_line(file)?),
            None => std::env::var("DQKD_ROOT_PASSPHRASE").ok().map(Zeroizing::new),
        };
        if passphrase.as_ref().is_some_and(|text| text.is_empty()) {
            bail!("the passphrase of the root's private key is empty");
        }
        Ok(passphrase)
    }
}

#[derive(Debug, Args)]
struct CrlLife {
    /// Life of the revocation lists in days
    #[arg(long, value_name = "N", default_value_t = 90)]
    crl_days: u32,
}

#[derive(Debug, Args)]
struct InitArgs {
    #[command(flatten)]
    dir: DirArg,
    /// SPIFFE trust domain of all certificates
    #[arg(long, value_name = "NAME")]
    trust_domain: String,
    /// Life of root and issuing CA in days
    #[arg(long, value_name = "N", default_value_t = 3650)]
    days: u32,
    #[command(flatten)]
    life: CrlLife,
    /// Tells the CAs of this authority from those of another one of the trust domain
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Host names that may be certified: this one and all below it (may be repeated)
    #[arg(long, value_name = "NAME")]
    permit_dns: Vec<String>,
    /// Addresses that may be certified (may be repeated)
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    permit_ip: Vec<String>,
    #[command(flatten)]
    root: RootArg,
}

#[derive(Debug, Args)]
struct IssueArgs {
    /// What the holder is: kme, sae, pool or operator
    role: Role,
    /// ID of the holder: letters, digits and -._ (any text with --cn)
    id: String,
    /// Make the common name the ID, without a SPIFFE URI: for SAEs whose IDs have spaces, = and the like
    #[arg(long)]
    cn: bool,
    #[command(flatten)]
    dir: DirArg,
    /// Folder for the files; the authority's if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Name of the files without extension; the ID if not given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// DNS name of the holder's server (may be repeated)
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// IP address of the holder's server (may be repeated)
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Life in days
    #[arg(long, value_name = "N", default_value_t = 397)]
    days: u32,
    #[command(flatten)]
    p12: P12Args,
    /// Replace files of the same names
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct P12Args {
    /// Make a .p12 bundle; its password is the first line of this file
    #[arg(long, value_name = "FILE")]
    p12_password_file: Option<PathBuf>,
    /// Make a .p12 bundle with this password. Other users of the machine can see it in the list of processes
    #[arg(
        long,
        value_name = "PASSWORD",
        conflicts_with = "p12_password_file",
        env = "DQKD_P12_PASSWORD",
        hide_env_values = true
    )]
    p12_password: Option<String>,
}

impl P12Args {
    fn read(self) -> anyhow::Result<Option<Zeroizing<String>>> {
        let password = match (self.p12_password, &self.p12_password_file) {
            (Some(password), _) => Some(Zeroizing::new(password)),
            (None, Some(file)) => Some(first_line(file)?),
            (None, None) => None,
        };
        if password.as_ref().is_some_and(|password| password.is_empty()) {
            bail!("the password of the .p12 bundle is empty");
        }
        Ok(password)
    }
}

#[derive(Debug, Args)]
struct RenewArgs {
    /// What the holder is
    role: Role,
    /// ID of the holder
    id: String,
    #[command(flatten)]
    dir: DirArg,
    /// Folder of the files, which are replaced; the authority's if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Name of the files without extension; the ID if not given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Life in days; that of the last certificate if not given
    #[arg(long, value_name = "N")]
    days: Option<u32>,
    #[command(flatten)]
    p12: P12Args,
    /// Revoke the old certificates of the holder, and write new revocation lists
    #[arg(long)]
    revoke_old: bool,
    #[command(flatten)]
    life: CrlLife,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// What the holder is
    #[arg(required_unless_present_any = ["serial", "issuing"], requires = "id")]
    role: Option<Role>,
    /// ID of the holder; all its certificates are revoked
    #[arg(conflicts_with = "serial")]
    id: Option<String>,
    /// Revoke one certificate by its serial number in hexadecimal
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Revoke the issuing CA with everything that it issued, and make another one
    #[arg(long, conflicts_with_all = ["role", "id", "serial"])]
    issuing: bool,
    #[command(flatten)]
    dir: DirArg,
    #[command(flatten)]
    life: CrlLife,
    #[command(flatten)]
    root: RootArg,
}

pub(super) fn run(args: PkiArgs) -> anyhow::Result<()> {
    match args.command {
        PkiCommand::Init(args) => init(&args),
        PkiCommand::Issue(args) => issue(args),
        PkiCommand::Renew(args) => renew(args),
        PkiCommand::List { dir, json } => list(&dir.dir, json),
        PkiCommand::Revoke(args) => revoke(&args),
        PkiCommand::Crl { dir, life, root } => {
            let authority = open(&dir.dir)?.with_root_passphrase(root.read()?);
            println!("{}", authority.write_crl(life.crl_days)?.display());
            warn_of_root_list(&authority, life.crl_days)
        }
        PkiCommand::Show { file } => {
            let pem = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let Some(text) = describe(&pem) else {
                bail!("{} has no PEM certificate or revocation list", file.display());
            };
            print!("{text}");
            Ok(())
        }
    }
}

fn open(dir: &Path) -> anyhow::Result<Authority> {
    Ok(Authority::open(dir, Arc::new(SystemClock), Arc::new(OsRandom))?)
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let new = NewAuthority {
        trust_domain: args.trust_domain.clone(),
        days: args.days,
        crl_days: args.life.crl_days,
        name: args.name.clone(),
        root_passphrase: args.root.read()?,
        permits: Permits { dns: args.permit_dns.clone(), ip: args.permit_ip.clone() },
    };
    let dir = &args.dir.dir;
    Authority::init(dir, &new, Arc::new(SystemClock), Arc::new(OsRandom))?;
    println!("{}", dir.join("ca.pem").display());
    println!("{}", dir.join("crl.pem").display());
    eprintln!("The private keys of the CAs are in {}: keep them secret.", dir.join("authority").display());
    Ok(())
}

fn issue(args: IssueArgs) -> anyhow::Result<()> {
    let p12_password = args.p12.read()?;
    let order = Order {
        role: args.role,
        id: args.id,
        cn_only: args.cn,
        dns: args.dns,
        ip: args.ip,
        days: args.days,
        p12_password,
        file_name: args.name,
        replace: args.force,
    };
    let out = args.out.unwrap_or_else(|| args.dir.dir.clone());
    print_files(&open(&args.dir.dir)?.issue(&order, &out)?);
    Ok(())
}

fn print_files(issued: &Issued) {
    for file in [Some(&issued.cert), Some(&issued.key), issued.p12.as_ref()].into_iter().flatten() {
        println!("{}", file.display());
    }
}

fn renew(args: RenewArgs) -> anyhow::Result<()> {
    let authority = open(&args.dir.dir)?;
    let is_old = |one: &Listed| {
        one.role == args.role.as_str() && one.id == args.id && one.state == State::Valid && args.revoke_old
    };
    let old: Vec<String> =
        authority.list()?.into_iter().filter(|one| is_old(one)).map(|one| one.serial).collect();
    let renewal = Renewal {
        role: args.role,
        id: args.id.clone(),
        days: args.days,
        p12_password: args.p12.read()?,
        file_name: args.name,
    };
    let out = args.out.unwrap_or_else(|| args.dir.dir.clone());
    print_files(&authority.renew(&renewal, &out)?);
    for serial in &old {
        authority.revoke_serial(serial, args.life.crl_days)?;
        println!("revoked {serial}");
    }
    if !old.is_empty() {
        tell_of_lists(&args.dir.dir);
        warn_of_root_list(&authority, args.life.crl_days)?;
    }
    Ok(())
}

fn list(dir: &Path, json: bool) -> anyhow::Result<()> {
    let listed = open(dir)?.list()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&listed)?);
        return Ok(());
    }
    let width = listed.iter().map(|one| one.id.chars().count()).max().unwrap_or_default();
    for Listed { role, id, serial, not_after, state } in listed {
        println!("{:<7}  {role:<10}  {id:<width$}  {not_after}  {serial}", state.as_str());
    }
    Ok(())
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let authority = open(&args.dir.dir)?.with_root_passphrase(args.root.read()?);
    let revoked = match (&args.serial, args.role, &args.id) {
        _ if args.issuing => vec![authority.revoke_issuing(args.life.crl_days)?],
        (Some(serial), ..) => authority.revoke_serial(serial, args.life.crl_days)?,
        (None, Some(role), Some(id)) => authority.revoke(role, id, args.life.crl_days)?,
        _ => bail!("give one of: a role and an ID, --serial, --issuing"),
    };
    for serial in revoked {
        println!("revoked {serial}");
    }
    if args.issuing {
        eprintln!(
            "The issuing CA was revoked with all its certificates. Issue them again, and copy each to its daemon together \
             with the new lists: a daemon whose own certificate is revoked keeps its old lists."
        );
    }
    tell_of_lists(&args.dir.dir);
    warn_of_root_list(&authority, args.life.crl_days)
}

fn tell_of_lists(dir: &Path) {
    eprintln!("Copy {} to every daemon.", dir.join("crl.pem").display());
}

/// The root's list lasts longer than the others, but nobody but the holder of the passphrase can replace it.
fn warn_of_root_list(authority: &Authority, crl_days: u32) -> anyhow::Result<()> {
    let due = authority.root_list_due()?;
    let next = SystemClock.now().plus(Duration::from_hours(24 * u64::from(crl_days)));
    if due < next && authority.has_sealed_root()? {
        eprintln!(
            "The root's list is due at {due}, before the next one of the issuing CA: \
             run `dqkd pki crl --root-passphrase-file FILE` before that."
        );
    }
    Ok(())
}

/// The first line of a file, for passwords.
pub(super) fn first_line(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
