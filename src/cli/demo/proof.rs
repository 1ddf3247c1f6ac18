//! The proof: alice fetches a key at the first site, bob the same key at the second, by its ID.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use mtls::{ExpectedServer, HttpVersion, HttpsClient, TlsFiles, TlsStore};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use super::manifest::{Manifest, Sae, Site};

/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 64 * 1024;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sites that have just started may take to reach each other.
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn run(manifest: &Manifest) -> anyhow::Result<()> {
    let ((site_a, alice), (site_b, bob)) = parties(manifest)?;
    let context = |sae: &Sae, site: &Site| format!("{} at {}", sae.id, site.id);
    let key = patient_enc(manifest, (site_a, alice), &site_b.id).await;
    let key = key.with_context(|| context(alice, site_a))?;
    println!("{:<13} {} asks {} for a key to share with {}", alice.id, alice.id, site_a.id, site_b.id);
    println!("key ID        {}", key.id);
    let body = serde_json::json!({ "key_IDs": [{ "key_ID": key.id }] }).to_string();
    let twin = ask(manifest, (site_b, bob), &format!("{}/dec_keys", site_a.id), Some(body)).await;
    let twin = twin.with_context(|| context(bob, site_b))?.context("503 where the key is stored")?;
    println!("{:<13} {} asks {} for that key ID", bob.id, bob.id, site_b.id);
    println!("{:<13} {}", site_a.id, *key.key);
    println!("{:<13} {}", site_b.id, *twin.key);
    ensure!(key.id == twin.id && key.key == twin.key, "the keys of {} and {} differ", site_a.id, site_b.id);
    println!("result        the keys match; no key crossed between the sites");
    Ok(())
}

/// Prints commands that a user can paste and try next.
pub(super) fn print_commands(manifest: &Manifest) {
    let Ok(((site_a, alice), (site_b, bob))) = parties(manifest) else { return };
    let ca = quoted(&manifest.ca);
    let curl = |sae: &Sae| {
        let (p12, password) = (quoted(&sae.p12), &sae.p12_password);
        format!("curl --cacert {ca} --cert {p12}:{password} --cert-type P12")
    };
    println!("\nAlice gets a key to share with any SAE of {}:\n", site_b.id);
    println!("  {} {}/api/v1/keys/{}/enc_keys", curl(alice), site_a.sae_url, site_b.id);
    println!("\nBob gets the same key (replace KEY_ID by the key_ID of the answer):\n");
    println!(
        "  {} -H 'Content-Type: application/json' -d '{{\"key_IDs\":[{{\"key_ID\":\"KEY_ID\"}}]}}' {}/api/v1/keys/{}/dec_keys",
        curl(bob),
        site_b.sae_url,
        site_a.id
    );
    println!("\nThe same with qkd014 (`cargo build --release -p qkd014` makes target/release/qkd014):\n");
    let qkd014 = |call: &str, site: &Site, sae: &Sae| {
        let (url, p12, password) = (&site.sae_url, quoted(&sae.p12), &sae.p12_password);
        format!("{} {call} --url {url} --ca {ca} --p12 {p12} --p12-password {password}", client_program())
    };
    println!("  {} {}", qkd014("enc", site_a, alice), site_b.id);
    println!("  {} {} KEY_ID", qkd014("dec", site_b, bob), site_a.id);
    println!("\nIs a site ready?\n");
    for site in &manifest.sites {
        println!("  curl {}/readyz", site.admin_url);
    }
    println!("\nCtrl-C stops everything.");
}

/// How to start `qkd014`: by its path if it is beside this program, otherwise by its name.
fn client_program() -> String {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("qkd014"));
    beside.filter(|path| path.is_file()).map_or_else(|| "qkd014".to_owned(), |path| quoted(&path))
}

/// Quoted as one word for a shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b));
    if is_plain { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

type SaeAtSite<'a> = (&'a Site, &'a Sae);

fn parties(manifest: &Manifest) -> anyhow::Result<(SaeAtSite<'_>, SaeAtSite<'_>)> {
    let [site_a, site_b, ..] = manifest.sites.as_slice() else { bail!("a demo has two sites") };
    let (Some(alice), Some(bob)) = (site_a.saes.first(), site_b.saes.first()) else {
        bail!("a site of a demo has an SAE")
    };
    Ok(((site_a, alice), (site_b, bob)))
}

/// One key as a KME delivered it (ETSI GS QKD 014, clause 6.3).
#[derive(Deserialize)]
struct DeliveredKey {
    #[serde(rename = "key_ID")]
    id: String,
    /// In base64.
    key: Zeroizing<String>,
}

#[derive(Deserialize)]
struct KeyContainer {
    keys: Vec<DeliveredKey>,
}

/// Calls the KME of `site` as `sae` and returns the one key of its answer. `None` for 503: try again.
async fn ask(
    manifest: &Manifest,
    (site, sae): SaeAtSite<'_>,
    path: &str,
    body: Option<String>,
) -> anyhow::Result<Option<DeliveredKey>> {
    let files = TlsFiles { ca: manifest.ca.clone(), cert: sae.cert.clone(), key: sae.key.clone(), crl: None };
    let https =
        HttpsClient::new(TlsStore::open(files)?, ExpectedServer::HostName, "", HttpVersion::Http1Or2)?;
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let request = Request::builder()
        .method(method)
        .uri(format!("{}/api/v1/keys/{path}", site.sae_url))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))?;
    let exchange = async {
        let response = https.send(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|_| anyhow!("the answer is too long or incomplete"))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    let (status, body) = timeout(CALL_TIMEOUT, exchange).await.context("no answer in time")??;
    match status {
        StatusCode::SERVICE_UNAVAILABLE => Ok(None),
        StatusCode::OK => {
            let container: KeyContainer =
                serde_json::from_slice(&body).map_err(|_| anyhow!("the answer is not a key container"))?;
            let mut keys = container.keys.into_iter();
            let (key, None) = (keys.next(), keys.next()) else { bail!("the answer has several keys") };
            Ok(Some(key.context("the answer has no key")?))
        }
        // Safe to print: an error holds no key.
        _ => bail!("{status}: {}", String::from_utf8_lossy(&body)),
    }
}

/// Calls `enc_keys`; for a while repeats it as long as the KME answers 503.
async fn patient_enc(manifest: &Manifest, at: SaeAtSite<'_>, slave: &str) -> anyhow::Result<DeliveredKey> {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask(manifest, at, &format!("{slave}/enc_keys"), None).await? {
            Some(key) => return Ok(key),
            None if Instant::now() < until => sleep(RETRY_PAUSE).await,
            None => bail!("still 503 after {} s", PATIENCE.as_secs()),
        }
    }
}
