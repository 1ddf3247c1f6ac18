//! The proof: alice fetches a key at the first site, bob the same key at the second, by its ID.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::manifest::{Manifest, Sae, Site};
use crate::client::{ClientError, DeliveredKey, EncRequest, Etsi014Client, KeyContainer};
use crate::tls::{TlsFiles, TlsStore};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Sites that have just started may not know each other yet.
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn run(manifest: &Manifest) -> anyhow::Result<()> {
    let ((site_a, alice), (site_b, bob)) = parties(manifest)?;
    let key = only(patient_enc(manifest, site_a, alice, &site_b.id).await?)?;
    println!("{:<13} {} asks {} for a key to share with {}", alice.id, alice.id, site_a.id, site_b.id);
    println!("key ID        {}", key.id);
    let client = client(manifest, site_b, bob)?;
    let container = client.dec_keys(&site_a.id, std::slice::from_ref(&key.id)).await;
    let twin = only(container.with_context(|| format!("{} at {}", bob.id, site_b.id))?)?;
    println!("{:<13} {} asks {} for that key ID", bob.id, bob.id, site_b.id);
    println!("{:<13} {}", site_a.id, *key.to_base64());
    println!("{:<13} {}", site_b.id, *twin.to_base64());
    ensure!(
        key.id == twin.id && key.key.ct_eq(&twin.key),
        "the keys of {} and {} differ",
        site_a.id,
        site_b.id
    );
    println!("result        the keys match; no key crossed between the sites");
    Ok(())
}

pub(super) fn print_commands(manifest: &Manifest) {
    let Ok(((site_a, alice), (site_b, bob))) = parties(manifest) else { return };
    let curl = |sae: &Sae| {
        format!(
            "curl --cacert {} --cert {}:{} --cert-type P12",
            quoted(&manifest.ca.display().to_string()),
            quoted(&sae.p12.display().to_string()),
            sae.p12_password
        )
    };
    println!("\nAlice, a key to share with any SAE of {}:\n", site_b.id);
    println!("  {} {}/api/v1/keys/{}/enc_keys", curl(alice), site_a.sae_url, site_b.id);
    println!("\nBob, the same key (put in the key_ID of the answer):\n");
    println!(
        "  {} -H 'Content-Type: application/json' -d '{{\"key_IDs\":[{{\"key_ID\":\"KEY_ID\"}}]}}' \
         {}/api/v1/keys/{}/dec_keys",
        curl(bob),
        site_b.sae_url,
        site_a.id
    );
    println!("\nReadiness:\n");
    for site in &manifest.sites {
        println!("  curl {}/readyz", site.admin_url);
    }
    println!("\nCtrl-C stops everything.");
}

fn quoted(path: &str) -> String {
    let is_plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b));
    if is_plain { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

type SaeAtSite<'a> = (&'a Site, &'a Sae);

fn parties(manifest: &Manifest) -> anyhow::Result<(SaeAtSite<'_>, SaeAtSite<'_>)> {
    let [site_a, site_b, ..] = manifest.sites.as_slice() else { bail!("a demo has two sites") };
    let (Some(alice), Some(bob)) = (site_a.saes.first(), site_b.saes.first()) else {
        bail!("a site of a demo has an SAE")
    };
    Ok(((site_a, alice), (site_b, bob)))
}

fn client(manifest: &Manifest, site: &Site, sae: &Sae) -> anyhow::Result<Etsi014Client> {
    let files = TlsFiles { ca: manifest.ca.clone(), cert: sae.cert.clone(), key: sae.key.clone(), crl: None };
    Ok(Etsi014Client::new(&site.sae_url, TlsStore::open(files)?, CALL_TIMEOUT)?)
}

/// `enc_keys`, repeated for a while as long as the KME says that it may be repeated.
async fn patient_enc(
    manifest: &Manifest,
    site: &Site,
    sae: &Sae,
    slave: &str,
) -> anyhow::Result<KeyContainer> {
    let client = client(manifest, site, sae)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match client.enc_keys(slave, &EncRequest::default()).await {
            Ok(container) => return Ok(container),
            Err(ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. })
                if Instant::now() < until =>
            {
                sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(error).with_context(|| format!("{} at {}", sae.id, site.id)),
        }
    }
}

fn only(container: KeyContainer) -> anyhow::Result<DeliveredKey> {
    let mut keys = container.keys.into_iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) => Ok(key),
        _ => bail!("the answer does not have exactly one key"),
    }
}
