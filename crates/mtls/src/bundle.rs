//! Opens `.p12` bundles: a private key with its chain, protected by a password.

use p12_keystore::{KeyStore, Pkcs12ImportPolicy};
use zeroize::Zeroizing;

/// A bundle cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The password is wrong or the file is damaged. The two cannot be told apart.
    #[error("the .p12 bundle cannot be opened: wrong password, or not a PKCS#12 file ({0})")]
    Open(p12_keystore::error::Error),
    /// It has no private key with a certificate.
    #[error("the .p12 bundle has no private key with its certificate")]
    Empty,
}

/// What is in a bundle.
pub struct Bundle {
    /// The private key, PKCS#8 DER.
    pub key_der: Zeroizing<Vec<u8>>,
    /// Its certificate, then the others, DER.
    pub chain_der: Vec<Vec<u8>>,
}

/// Opens a bundle with its password.
///
/// # Errors
/// [`BundleError`].
pub fn open_bundle(bytes: &[u8], password: &str) -> Result<Bundle, BundleError> {
    let store =
        KeyStore::from_pkcs12(bytes, password, Pkcs12ImportPolicy::Relaxed).map_err(BundleError::Open)?;
    let (_, chain) = store.private_key_chain().ok_or(BundleError::Empty)?;
    if chain.certs().is_empty() {
        return Err(BundleError::Empty);
    }
    Ok(Bundle {
        key_der: Zeroizing::new(chain.key().as_der().to_vec()),
        chain_der: chain.certs().iter().map(|certificate| certificate.as_der().to_vec()).collect(),
    })
}
