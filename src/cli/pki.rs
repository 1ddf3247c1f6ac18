//! `dqkd pki`: a small certificate authority.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use kme::{OsRandom, SystemClock};
use pki::{Authority, NewAuthority, Order, Role, describe};

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
    /// Revoke certificates and write new revocation lists
    Revoke(RevokeArgs),
    /// Write new revocation lists
    Crl {
        #[command(flatten)]
        dir: DirArg,
        #[command(flatten)]
        life: CrlLife,
    },
    /// Describe the certificates of a PEM file
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
    /// Replace files of the same names
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// What the holder is
    #[arg(required_unless_present = "serial", requires = "id")]
    role: Option<Role>,
    /// ID of the holder; all its certificates are revoked
    #[arg(conflicts_with = "serial")]
    id: Option<String>,
    /// Revoke one certificate by its serial number in hexadecimal
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    #[command(flatten)]
    dir: DirArg,
    #[command(flatten)]
    life: CrlLife,
}

pub(super) fn run(args: PkiArgs) -> anyhow::Result<()> {
    match args.command {
        PkiCommand::Init(args) => init(&args),
        PkiCommand::Issue(args) => issue(args),
        PkiCommand::Revoke(args) => revoke(&args),
        PkiCommand::Crl { dir, life } => {
            println!("{}", open(&dir.dir)?.write_crl(life.crl_days)?.display());
            Ok(())
        }
        PkiCommand::Show { file } => {
            let pem = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let Some(text) = describe(&pem) else {
                bail!("{} has no PEM certificate", file.display());
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
    };
    let dir = &args.dir.dir;
    Authority::init(dir, &new, Arc::new(SystemClock), Arc::new(OsRandom))?;
    println!("{}", dir.join("ca.pem").display());
    println!("{}", dir.join("crl.pem").display());
    eprintln!("The private keys of the CAs are in {}: keep them secret.", dir.join("authority").display());
    Ok(())
}

fn issue(args: IssueArgs) -> anyhow::Result<()> {
    let p12_password = match (args.p12_password, &args.p12_password_file) {
        (Some(password), _) => Some(Zeroizing::new(password)),
        (None, Some(file)) => Some(first_line(file)?),
        (None, None) => None,
    };
    if p12_password.as_ref().is_some_and(|password| password.is_empty()) {
        bail!("the password of the .p12 bundle is empty");
    }
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
    let issued = open(&args.dir.dir)?.issue(&order, &out)?;
    println!("{}", issued.cert.display());
    println!("{}", issued.key.display());
    if let Some(p12) = issued.p12 {
        println!("{}", p12.display());
    }
    Ok(())
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let authority = open(&args.dir.dir)?;
    let revoked = match (&args.serial, args.role, &args.id) {
        (Some(serial), ..) => authority.revoke_serial(serial, args.life.crl_days)?,
        (None, Some(role), Some(id)) => authority.revoke(role, id, args.life.crl_days)?,
        _ => bail!("give a role and an ID, or --serial"),
    };
    for serial in revoked {
        println!("revoked {serial}");
    }
    eprintln!("Copy {} to every daemon.", args.dir.dir.join("crl.pem").display());
    Ok(())
}

/// The first line of a file, for passwords.
pub(super) fn first_line(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
