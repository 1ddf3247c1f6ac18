//! Whether a daemon's certificates, revocation lists and key-encryption key can be used: before it serves, and for
//! `dqkd check-config`.

use std::sync::Arc;

use anyhow::bail;
use mtls::identity::{Identity, IdentityError};
use mtls::{DaemonTls, TlsStore, development};

use super::supervise::name_of;
use super::wiring;
use crate::config::{ConfigFile, KekSource, KmeConfig, PoolServerConfig};
use crate::store::KeyEncryptionKeys;

/// The certificates of a KME, which must name it.
pub(super) fn tls_of_kme(config: &KmeConfig) -> anyhow::Result<Arc<TlsStore>> {
    let is_own = |named: &Identity| matches!(named, Identity::Kme(own) if *own.id() == config.id);
    let whose = format!("KME {}", config.id);
    open(&config.tls, &config.trust_domain, is_own, &whose)
}

/// The certificates of a pool server, which must name it.
pub(super) fn tls_of_pool_server(config: &PoolServerConfig) -> anyhow::Result<Arc<TlsStore>> {
    let is_own = |named: &Identity| matches!(named, Identity::Pool(own) if *own == config.id);
    let whose = format!("pool server {}", config.id);
    open(&config.tls, &config.trust_domain, is_own, &whose)
}

fn open(
    tls: &DaemonTls,
    trust_domain: &str,
    is_own: impl Fn(&Identity) -> bool,
    whose: &str,
) -> anyhow::Result<Arc<TlsStore>> {
    let store = TlsStore::open_daemon(tls.clone())?;
    let named: Result<Identity, IdentityError> =
        store.own_identity(&wiring::strict_identity_rules(trust_domain));
    if !named.as_ref().is_ok_and(is_own) {
        bail!(
            "{} is not a certificate of {whose} in trust domain {trust_domain}: it names {}",
            tls.files.cert.display(),
            name_of(named)
        );
    }
    Ok(store)
}

/// The key-encryption keys of a KME. Public ones are refused where its certificates would be.
pub(super) fn keks_of(config: &KmeConfig) -> anyhow::Result<KeyEncryptionKeys> {
    let keks = wiring::key_encryption_keys(&config.store.kek)?;
    let public = if config.tls.development_keys { None } else { keks.find(development::kek) };
    if let Some(name) = public {
        bail!(
            "the key-encryption key is the public one of certs-dev/{name}, and a listener is not on loopback: make your \
             own with `openssl rand -hex 32`. If this is only a laboratory, set danger.public_development_keys = true"
        );
    }
    Ok(keks)
}

/// Checks all that, and returns what an operator should know of revocations. A key-encryption key that is no file may
/// be out of reach here: `serve` checks it.
///
/// # Errors
/// Why the daemon would not start.
pub fn check_identity(file: &ConfigFile) -> anyhow::Result<Vec<String>> {
    let store = match file {
        ConfigFile::Kme(config) => {
            let store = tls_of_kme(config)?;
            if matches!(config.store.kek, KekSource::File(_)) {
                keks_of(config)?;
            }
            store
        }
        ConfigFile::Pool(config) => tls_of_pool_server(config)?,
    };
    let known = store.revocations();
    let cas = known.without_list.join("; ");
    Ok(match (known.has_lists, known.without_list.is_empty()) {
        (false, _) => vec![format!("no revocation list is configured (tls.crl). CAs without one: {cas}")],
        (true, false) => vec![format!("CAs without a revocation list, as tls.crl_exempt allows: {cas}")],
        (true, true) => Vec::new(),
    })
}
