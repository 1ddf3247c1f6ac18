//! `.p12` bundles: a private key with its chain under a password, as curl and browsers take them.
//!
//! PBES2 with AES-256-CBC and PBKDF2-HMAC-SHA-256, SHA-256 MAC: what OpenSSL 3 reads without its legacy
//! provider.

use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, LocalKeyId, MacAlgorithm, Pkcs12ImportPolicy,
    PrivateKey, PrivateKeyChain,
};
use zeroize::Zeroizing;

/// Rounds of PBKDF2 for key and MAC each.
const ITERATIONS: u32 = 100_000;

/// A bundle cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The password or the file is wrong; a wrong password cannot be told from a damaged file.
    #[error("the .p12 bundle cannot be opened: wrong password, or no PKCS#12 file ({0})")]
    Open(p12_keystore::error::Error),
    /// There is no private key with a certificate in it.
    #[error("the .p12 bundle has no private key with its certificate")]
    Empty,
    /// The library failed to write it.
    #[error("the .p12 bundle could not be made: {0}")]
    Make(p12_keystore::error::Error),
}

/// What is in a bundle.
pub struct Opened {
    /// The private key, PKCS#8 DER.
    pub key_der: Zeroizing<Vec<u8>>,
    /// Its certificate, then the others, DER.
    pub chain_der: Vec<Vec<u8>>,
}

/// Makes a bundle of a PKCS#8 key and its chain, the own certificate first.
pub(super) fn make_bundle(
    name: &str,
    key_der: &[u8],
    chain_der: &[&[u8]],
    password: &str,
) -> Result<Vec<u8>, BundleError> {
    let key = PrivateKey::from_der(key_der).map_err(BundleError::Make)?;
    let certificates = chain_der.iter().map(|der| Certificate::from_der(der)).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(BundleError::Make)?;
    let id = LocalKeyId(vec![1]);
    let mut store = KeyStore::new();
    store.add_entry(name, KeyStoreEntry::PrivateKeyChain(PrivateKeyChain::new(id, key, certificates)));
    store
        .writer(password)
        .encryption_algorithm(EncryptionAlgorithm::PbeWithHmacSha256AndAes256)
        .encryption_iterations(ITERATIONS)
        .mac_algorithm(MacAlgorithm::HmacSha256)
        .mac_iterations(ITERATIONS)
        .write()
        .map_err(BundleError::Make)
}

/// Opens a bundle with its password.
///
/// # Errors
/// [`BundleError`].
pub fn open_bundle(bytes: &[u8], password: &str) -> Result<Opened, BundleError> {
    let store =
        KeyStore::from_pkcs12(bytes, password, Pkcs12ImportPolicy::Relaxed).map_err(BundleError::Open)?;
    let (_, chain) = store.private_key_chain().ok_or(BundleError::Empty)?;
    if chain.certs().is_empty() {
        return Err(BundleError::Empty);
    }
    Ok(Opened {
        key_der: Zeroizing::new(chain.key().as_der().to_vec()),
        chain_der: chain.certs().iter().map(|certificate| certificate.as_der().to_vec()).collect(),
    })
}
