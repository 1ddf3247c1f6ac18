//! A private key under a passphrase: PKCS#8 with PBES2, as OpenSSL and others read it.

use kme::Random;
use pkcs8::der::pem::PemLabel;
use pkcs8::pkcs5::pbes2::Parameters;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use rcgen::KeyPair;
use zeroize::Zeroizing;

use super::PkiError;

/// Rounds of PBKDF2-HMAC-SHA-256: what OWASP asks for.
const ITERATIONS: u32 = 600_000;
/// What stands in the first line of such a PEM file.
const LABEL: &str = <EncryptedPrivateKeyInfoRef<'static> as PemLabel>::PEM_LABEL;

/// The PEM text of `key` under `passphrase`.
pub(super) fn seal(
    key: &KeyPair,
    passphrase: &str,
    random: &dyn Random,
) -> Result<Zeroizing<String>, PkiError> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    random.fill(&mut salt)?;
    random.fill(&mut iv)?;
    let parameters = Parameters::generate_pbkdf2_sha256_aes256cbc(ITERATIONS, &salt, iv);
    let parameters = parameters.map_err(|error| PkiError::Seal(error.to_string()))?;
    let der = Zeroizing::new(key.serialize_der());
    let sealed = PrivateKeyInfoRef::try_from(der.as_slice())
        .and_then(|key| key.encrypt_with_params(parameters, passphrase))
        .map_err(|error| PkiError::Seal(error.to_string()))?;
    sealed.to_pem(LABEL, LineEnding::LF).map_err(|error| PkiError::Seal(error.to_string()))
}

/// Whether the PEM text is a key under a passphrase.
pub(super) fn is_sealed(pem: &str) -> bool {
    pem.contains(LABEL)
}

/// The key in the PEM text. `None` if the passphrase is wrong.
pub(super) fn open(pem: &str, passphrase: &str) -> Option<KeyPair> {
    let (_, sealed) = SecretDocument::from_pem(pem).ok()?;
    let sealed = EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes()).ok()?;
    let key = sealed.decrypt(passphrase).ok()?;
    KeyPair::try_from(key.as_bytes()).ok()
}
