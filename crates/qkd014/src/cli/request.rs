//! `qkd014 status`, `qkd014 enc`, `qkd014 dec`: a command-line client of any ETSI GS QKD 014 KME.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::outcome::{Failure, Outcome, block_on};
use super::password::first_line;
use crate::client::Client;
use crate::credentials::Credentials;
use crate::https::KmeUrl;
use crate::wire::{DeliveredKey, KeyContainer, KeyRequest};

#[derive(Debug, Args)]
struct Connection {
    /// The KME, for example https://kme.example:8443
    #[arg(long, value_name = "URL")]
    url: KmeUrl,
    /// CA certificates that the KME's certificate comes from; PEM
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// The SAE's certificate, then its intermediates; PEM
    #[arg(long, value_name = "FILE", requires = "key", required_unless_present = "p12")]
    cert: Option<PathBuf>,
    /// The SAE's private key; PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The SAE's certificate and key in a .p12 bundle
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cert", "key"])]
    p12: Option<PathBuf>,
    /// File whose first line is the bundle's password
    #[arg(long, value_name = "FILE", requires = "p12")]
    p12_password_file: Option<PathBuf>,
    /// The bundle's password; other users of the machine can see it in the list of processes
    #[arg(
        long,
        value_name = "PASSWORD",
        conflicts_with = "p12_password_file",
        env = "QKD014_P12_PASSWORD",
        hide_env_values = true
    )]
    p12_password: Option<String>,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "N", default_value_t = 30)]
    timeout: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    /// The SAE or KME to share keys with
    slave: String,
}

#[derive(Debug, Args)]
pub(super) struct EncArgs {
    #[command(flatten)]
    connection: Connection,
    /// The SAE or KME to share the keys with
    slave: String,
    /// How many keys; the KME's choice unless given
    #[arg(long, value_name = "N")]
    number: Option<u32>,
    /// Size of each key in bits; the KME's choice unless given
    #[arg(long, value_name = "BITS")]
    size: Option<u32>,
    /// A further SAE that may retrieve the keys (may be repeated)
    #[arg(long = "additional", value_name = "SAE")]
    additional_slaves: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct DecArgs {
    #[command(flatten)]
    connection: Connection,
    /// The SAE that fetched the keys, or its KME
    master: String,
    /// The keys' IDs
    #[arg(required = true, value_name = "KEY_ID")]
    key_ids: Vec<String>,
}

pub(super) fn status(args: StatusArgs) -> Outcome {
    let client = args.connection.client()?;
    let status = block_on(client.status(&args.slave))?.map_err(anyhow::Error::from)?;
    if args.connection.json {
        println!("{}", serde_json::to_string(&status).map_err(anyhow::Error::from)?);
        return Ok(());
    }
    println!("from   {} ({})", status.master_sae_id, status.source_kme_id);
    println!("to     {} ({})", status.slave_sae_id, status.target_kme_id);
    println!("ready  {} of {} keys", status.stored_key_count, status.max_key_count);
    println!("size   {} bits ({} to {})", status.key_size, status.min_key_size, status.max_key_size);
    println!(
        "limits {} keys, {} additional SAEs a request",
        status.max_key_per_request, status.max_sae_id_count
    );
    Ok(())
}

pub(super) fn enc(args: EncArgs) -> Outcome {
    let client = args.connection.client()?;
    let request =
        KeyRequest { number: args.number, size: args.size, additional_slaves: args.additional_slaves };
    let keys = block_on(client.enc_keys(&args.slave, &request))?.map_err(anyhow::Error::from)?;
    print_keys(&keys, args.connection.json);
    Ok(())
}

pub(super) fn dec(args: DecArgs) -> Outcome {
    let client = args.connection.client()?;
    let keys = block_on(client.dec_keys(&args.master, &args.key_ids))?.map_err(anyhow::Error::from)?;
    print_keys(&keys, args.connection.json);
    Ok(())
}

/// The only code that prints keys: to the person who asked for them.
fn print_keys(container: &KeyContainer, as_json: bool) {
    if as_json {
        let key = |key: &DeliveredKey| json!({ "key_ID": key.id, "key": *key.to_base64() });
        let keys: Vec<_> = container.keys.iter().map(key).collect();
        println!("{}", json!({ "keys": keys }));
        return;
    }
    for key in &container.keys {
        println!("{} {}", key.id, *key.to_base64());
    }
}

impl Connection {
    fn client(&self) -> Result<Client, Failure> {
        let client = Client::of(self.url.clone(), self.credentials()?).map_err(anyhow::Error::from)?;
        Ok(client.with_timeout(Duration::from_secs(self.timeout.clamp(1, 3600))))
    }

    fn credentials(&self) -> anyhow::Result<Credentials> {
        match (&self.cert, &self.key, &self.p12) {
            (Some(cert), Some(key), _) => Ok(Credentials::from_pem_files(&self.ca, cert, key)?),
            (_, _, Some(p12)) => Ok(Credentials::from_p12_file(&self.ca, p12, &self.password()?)?),
            _ => anyhow::bail!("give --cert and --key, or --p12"),
        }
    }

    fn password(&self) -> anyhow::Result<Zeroizing<String>> {
        match (&self.p12_password, &self.p12_password_file) {
            (Some(password), _) => Ok(Zeroizing::new(password.clone())),
            (None, Some(file)) => first_line(file),
            (None, None) => Ok(Zeroizing::default()),
        }
    }
}
