//! Writes a demo's files.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kme::{OsRandom, Random as _, SystemClock};
use pki::{Authority, NewAuthority, Order, Role};
use zeroize::Zeroizing;

use super::manifest::{Manifest, PoolServer, Sae, Site};
use super::plan::{Plan, PoolPlan, SitePlan};
use crate::store::KeyEncryptionKeys;

const TRUST_DOMAIN: &str = "dqkd.example";
const DAYS: u32 = 365;
const PKI: &str = "pki";

/// Writes all files into `dir`. Replaces an earlier demo, but no other files.
pub(super) fn write(dir: &Path, plan: &Plan) -> anyhow::Result<Manifest> {
    let context = || format!("cannot use {} for a demo", dir.display());
    clear(dir).with_context(context)?;
    fs::create_dir_all(dir).with_context(context)?;
    let dir = dir.canonicalize().with_context(context)?;
    let pki = dir.join(PKI);
    let new = NewAuthority { days: DAYS, crl_days: DAYS, ..NewAuthority::new(TRUST_DOMAIN) };
    let authority = Authority::init(&pki, &new, Arc::new(SystemClock), Arc::new(OsRandom))?;
    let issue = |role, id: &str, password: Option<&str>| {
        let is_server = matches!(role, Role::Kme | Role::Pool);
        let order = Order {
            role,
            id: id.to_owned(),
            cn_only: false,
            dns: if is_server { vec!["localhost".to_owned()] } else { Vec::new() },
            ip: if is_server { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { Vec::new() },
            days: DAYS,
            p12_password: password.map(|password| Zeroizing::new(password.to_owned())),
            file_name: None,
            replace: false,
        };
        authority.issue(&order, &pki)
    };
    let mut sites = Vec::with_capacity(plan.sites.len());
    for site in &plan.sites {
        issue(Role::Kme, &site.id, None)?;
        KeyEncryptionKeys::create_file(&dir.join(format!("{}.kek", site.id)), &OsRandom)?;
        let mut saes = Vec::with_capacity(site.saes.len());
        for id in &site.saes {
            let p12_password = password()?;
            let issued = issue(Role::Sae, id, Some(&p12_password))?;
            let p12 = issued.p12.context("no .p12 bundle was made")?;
            saes.push(Sae { id: (*id).to_owned(), cert: issued.cert, key: issued.key, p12, p12_password });
        }
        let config = dir.join(format!("{}.toml", site.id));
        write_private(&config, &kme_config(plan, site)).with_context(context)?;
        sites.push(Site {
            id: site.id.clone(),
            config,
            sae_url: url("https", site.sae_port),
            peer_url: url("https", site.peer_port),
            admin_url: url("http", site.admin_port),
            saes,
        });
    }
    let mut pool_servers = Vec::with_capacity(plan.pools.len());
    for pool in &plan.pools {
        issue(Role::Pool, &pool.id, None)?;
        let config = dir.join(format!("{}.toml", pool.id));
        fs::write(&config, pool_config(pool, &plan.sites)).with_context(context)?;
        pool_servers.push(PoolServer { id: pool.id.clone(), config, url: url("https", pool.port) });
    }
    let manifest = Manifest { ca: pki.join("ca.pem"), dir, sites, pool_servers };
    manifest.write()?;
    Ok(manifest)
}

/// Readable by its owner only: the URL of the store may hold a password.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// Removes an earlier demo. Fails if the folder holds anything else.
fn clear(dir: &Path) -> anyhow::Result<()> {
    let Ok(mut entries) = fs::read_dir(dir) else { return Ok(()) };
    if entries.next().is_none() {
        return Ok(());
    }
    ensure!(Manifest::is_in(dir), "it has other files in it: give another --dir");
    fs::remove_dir_all(dir).context("the earlier demo could not be removed")
}

fn password() -> anyhow::Result<String> {
    let mut bytes = [0; 9];
    OsRandom.fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn url(scheme: &str, port: u16) -> String {
    format!("{scheme}://127.0.0.1:{port}")
}

fn kme_config(plan: &Plan, site: &SitePlan) -> String {
    let id = &site.id;
    let mut text = format!(
        r#"# {id} of a dqkd demo; docs/configuration.md explains every key.

[kme]
id = "{id}"
trust_domain = "{TRUST_DOMAIN}"

[tls]
ca = "{PKI}/ca.pem"
cert = "{PKI}/{id}.pem"
key = "{PKI}/{id}.key"
crl = "{PKI}/crl.pem"

[listen]
sae = "127.0.0.1:{}"
peer = "127.0.0.1:{}"
admin = "127.0.0.1:{}"

[store]
url = {}
kek_file = "{id}.kek"
"#,
        site.sae_port,
        site.peer_port,
        site.admin_port,
        // Quoted for TOML.
        toml::Value::String(site.store_url.clone()),
    );
    for peer in plan.sites.iter().filter(|peer| peer.id != *id) {
        let _ =
            write!(text, "\n[[peer]]\nid = \"{}\"\nurl = \"{}\"\n", peer.id, url("https", peer.peer_port));
    }
    for pool in &plan.pools {
        let _ =
            write!(text, "\n[[pool_server]]\nid = \"{}\"\nurl = \"{}\"\n", pool.id, url("https", pool.port));
    }
    for home in &plan.sites {
        for sae in &home.saes {
            let _ = write!(text, "\n[[sae]]\nid = \"{sae}\"\nkme = \"{}\"\n", home.id);
        }
    }
    text
}

/// The default of `memory_max_mib`.
const POOL_MEMORY_MIB: usize = 256;

fn pool_config(pool: &PoolPlan, sites: &[SitePlan]) -> String {
    let PoolPlan { id, port, admin_port } = pool;
    let kmes: Vec<String> = sites.iter().map(|site| format!("{:?}", site.id)).collect();
    let kmes = kmes.join(", ");
    let sites = sites.len();
    // Each site has a pool of 1 MiB for each other site and, for a while, a second one that replaces it. The
    // shares of all sites are alike, and one more share stays free.
    let needed = 2 * (sites + 1) * sites.saturating_sub(1);
    let memory =
        if needed > POOL_MEMORY_MIB { format!("memory_max_mib = {needed}\n") } else { String::new() };
    format!(
        r#"# {id} of a dqkd demo; docs/configuration.md explains every key.

[pool]
id = "{id}"
trust_domain = "{TRUST_DOMAIN}"
kmes = [{kmes}]
{memory}
[tls]
ca = "{PKI}/ca.pem"
cert = "{PKI}/{id}.pem"
key = "{PKI}/{id}.key"
crl = "{PKI}/crl.pem"

[listen]
pool = "127.0.0.1:{port}"
admin = "127.0.0.1:{admin_port}"
"#
    )
}
