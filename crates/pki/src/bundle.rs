//! Makes `.p12` bundles: a private key with its chain, protected by a password, as curl and browsers take them.
//!
//! PBES2 with AES-256-CBC and PBKDF2-HMAC-SHA-256, SHA-256 MAC: OpenSSL 3 reads it without its legacy provider.

use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, LocalKeyId, MacAlgorithm, PrivateKey,
    PrivateKeyChain,
};

use super::PkiError;

/// Rounds of PBKDF2, for the key and for the MAC.
const ITERATIONS: u32 = 100_000;

/// Makes a bundle of a PKCS#8 key and its chain, the key's certificate first.
pub(super) fn make_bundle(
    name: &str,
    key_der: &[u8],
    chain_der: &[&[u8]],
    password: &str,
) -> Result<Vec<u8>, PkiError> {
    let key = PrivateKey::from_der(key_der).map_err(PkiError::Bundle)?;
    let certificates = chain_der.iter().map(|der| Certificate::from_der(der)).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(PkiError::Bundle)?;
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
        .map_err(PkiError::Bundle)
}
