//! Key-encryption keys (KEKs): reading them, and wrapping data keys with them. Knows nothing of SQL.
//!
//! A KEK is 256 bits, written as 64 hexadecimal digits on a line. The database never holds it, only its ID: a
//! truncated digest that reveals nothing of the key.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use kme::{Random, RandomError, SecretBytes};
use sha3::{Digest, Sha3_256};
use zeroize::Zeroizing;

use super::error::SealError;

const KEK_BYTES: usize = 32;
const KEK_ID_BYTES: usize = 8;
const KEK_ID_LABEL: &[u8] = b"dqkd store kek id 1";
/// Longest file of KEKs that is read. A real one has a few lines.
const MAX_TEXT_BYTES: u64 = 64 * 1024;
/// What AES key wrap adds (RFC 3394).
const WRAP_OVERHEAD_BYTES: usize = 8;
/// Length of a data key.
pub(crate) const DATA_KEY_BYTES: usize = 32;

/// Why there are no usable key-encryption keys. Never shows a key.
#[derive(Debug, thiserror::Error)]
pub enum KekError {
    /// The file cannot be read or written.
    #[error("key-encryption key file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// No keys there, or something that is none. The text says where, and never what is there.
    #[error("{0}")]
    Unusable(String),
    /// No random bytes for a new key.
    #[error(transparent)]
    Random(#[from] RandomError),
}

struct Kek {
    id: String,
    key: SecretBytes,
}

/// The key-encryption keys of a site. The first wraps new data keys; all of them unwrap old ones.
#[derive(Clone)]
pub struct KeyEncryptionKeys(Arc<[Kek]>);

impl fmt::Debug for KeyEncryptionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|kek| &kek.id)).finish()
    }
}

impl KeyEncryptionKeys {
    /// Reads a file with one key on each line, as 64 hexadecimal digits. Skips empty lines and `#` comments.
    /// Whether others than the owner may read the file is checked with the configuration.
    ///
    /// # Errors
    /// [`KekError`] names the file and the line.
    pub fn from_file(path: &Path) -> Result<Self, KekError> {
        let failed = |source| KekError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_TEXT_BYTES).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads the environment variable `name`, written like the file.
    ///
    /// # Errors
    /// [`KekError`] names the variable and the line.
    pub fn from_env(name: &str) -> Result<Self, KekError> {
        let text = std::env::var(name).map_err(|_| not_set(name))?;
        Self::parse(&Zeroizing::new(text), &format!("environment variable {name}"))
    }

    /// Reads the systemd credential `name` (`LoadCredential=`, `LoadCredentialEncrypted=`), written like the
    /// file.
    ///
    /// # Errors
    /// [`KekError`] when `$CREDENTIALS_DIRECTORY` is not set, or as for [`Self::from_file`].
    pub fn from_credential(name: &str) -> Result<Self, KekError> {
        const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
        let dir = std::env::var_os(DIRECTORY).ok_or_else(|| not_set(DIRECTORY))?;
        Self::from_credential_in(Path::new(&dir), name)
    }

    fn from_credential_in(dir: &Path, name: &str) -> Result<Self, KekError> {
        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
            return Err(KekError::Unusable(format!("{name:?} is not the name of a systemd credential")));
        }
        Self::from_file(&dir.join(name))
    }

    /// The first answer that `look` has to one of the keys, given as 64 hexadecimal digits in lower case.
    pub fn find<T>(&self, look: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(|kek| look(&Zeroizing::new(hex::encode(kek.key.expose()))))
    }

    /// Writes a new file with one fresh key and mode 0600. Never overwrites.
    ///
    /// # Errors
    /// [`KekError::File`] when the file exists or cannot be written, [`KekError::Random`].
    pub fn create_file(path: &Path, random: &dyn Random) -> Result<(), KekError> {
        let failed = |source| KekError::File { path: path.to_owned(), source };
        let mut key = SecretBytes::zeroed(KEK_BYTES);
        random.fill(key.expose_mut())?;
        let digits = Zeroizing::new(hex::encode(key.expose()));
        let text = Zeroizing::new(format!(
            "# dqkd key-encryption key; keep a copy apart from the database.\n{}\n",
            digits.as_str()
        ));
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    fn parse(text: &str, origin: &str) -> Result<Self, KekError> {
        let mut keks: Vec<Kek> = Vec::new();
        for (index, raw) in text.lines().enumerate() {
            let line = raw.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = |what: &str| KekError::Unusable(format!("{origin}, line {}: {what}", index + 1));
            let no_key = || wrong("a key-encryption key is 64 hexadecimal digits and not all zero");
            let mut key = SecretBytes::zeroed(KEK_BYTES);
            hex::decode_to_slice(line, key.expose_mut()).map_err(|_| no_key())?;
            if key.expose().iter().all(|byte| *byte == 0) {
                return Err(no_key());
            }
            let id = kek_id(&key);
            if keks.iter().any(|known| known.id == id) {
                return Err(wrong("this key-encryption key is listed twice"));
            }
            keks.push(Kek { id, key });
        }
        if keks.is_empty() {
            return Err(KekError::Unusable(format!("{origin} has no key-encryption key")));
        }
        Ok(Self(keks.into()))
    }

    /// Wraps `data_key` with the first KEK. Returns that KEK's ID and the wrapped key.
    pub(crate) fn wrap(&self, data_key: &SecretBytes) -> Result<(String, Vec<u8>), SealError> {
        let kek = self.0.first().ok_or(SealError::Crypto)?;
        let cipher = AesKek::new(&AES_256, kek.key.expose()).map_err(|_| SealError::Crypto)?;
        let mut out = [0; DATA_KEY_BYTES + WRAP_OVERHEAD_BYTES];
        let wrapped = cipher.wrap(data_key.expose(), &mut out).map_err(|_| SealError::Crypto)?;
        Ok((kek.id.clone(), wrapped.to_vec()))
    }

    /// Unwraps a data key with the KEK `kek_id`. `Ok(None)` when the wrapped bytes are not genuine.
    pub(crate) fn unwrap(&self, kek_id: &str, wrapped: &[u8]) -> Result<Option<SecretBytes>, SealError> {
        let kek = self
            .0
            .iter()
            .find(|kek| kek.id == kek_id)
            .ok_or_else(|| SealError::UnknownKek { kek_id: kek_id.to_owned() })?;
        let cipher = AesKek::new(&AES_256, kek.key.expose()).map_err(|_| SealError::Crypto)?;
        // aws-lc wants room for the wrapped length, although the result is shorter.
        let mut out = Zeroizing::new([0; DATA_KEY_BYTES + WRAP_OVERHEAD_BYTES]);
        if wrapped.len() != out.len() {
            return Ok(None);
        }
        match cipher.unwrap(wrapped, out.as_mut_slice()) {
            Ok(data_key) if data_key.len() == DATA_KEY_BYTES => Ok(Some(SecretBytes::copy_of(data_key))),
            _ => Ok(None),
        }
    }
}

fn not_set(variable: &str) -> KekError {
    KekError::Unusable(format!("environment variable {variable} with the key-encryption key is not set"))
}

/// The first bytes of SHA3-256 over a label and the key. Tells keys apart and reveals nothing of them: 256
/// random bits are as hard to guess from a digest as without one.
fn kek_id(key: &SecretBytes) -> String {
    let mut hash = Sha3_256::new();
    hash.update((KEK_ID_LABEL.len() as u64).to_be_bytes());
    hash.update(KEK_ID_LABEL);
    hash.update(key.expose());
    let digest = hash.finalize();
    hex::encode(digest.get(..KEK_ID_BYTES).unwrap_or(&digest))
}

#[cfg(test)]
mod tests {
    use kme::OsRandom;

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const ONE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const TWO: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

    #[test]
    fn comments_and_empty_lines_are_skipped_and_the_first_key_wraps() {
        let both = KeyEncryptionKeys::parse(&format!("# new\n{ONE}  # 2026\n\n{TWO}\n"), "x").unwrap();
        let first = KeyEncryptionKeys::parse(ONE, "x").unwrap();
        let second = KeyEncryptionKeys::parse(TWO, "x").unwrap();
        let (kek_id, wrapped) = both.wrap(&SecretBytes::copy_of(&[7; 32])).unwrap();
        assert_eq!(first.unwrap(&kek_id, &wrapped).unwrap().unwrap().expose(), &[7; 32]);
        assert!(matches!(second.unwrap(&kek_id, &wrapped), Err(SealError::UnknownKek { .. })));
    }

    #[test]
    fn a_changed_wrapped_key_is_refused() {
        let keks = KeyEncryptionKeys::parse(ONE, "x").unwrap();
        let (kek_id, mut wrapped) = keks.wrap(&SecretBytes::copy_of(&[7; 32])).unwrap();
        wrapped[3] ^= 1;
        assert!(keks.unwrap(&kek_id, &wrapped).unwrap().is_none());
        assert!(keks.unwrap(&kek_id, &wrapped[..39]).unwrap().is_none());
    }

    #[test]
    fn bad_lines_are_named_and_never_shown() {
        let bad = format!("{ONE}\n{}\n", &TWO[1..]);
        let error = |text: &str| KeyEncryptionKeys::parse(text, "site-a.kek").unwrap_err().to_string();
        assert!(error(&bad).contains("site-a.kek, line 2: a key-encryption key is 64"), "{}", error(&bad));
        assert!(!error(&bad).contains(&TWO[1..9]), "{}", error(&bad));
        assert!(error("# none\n").contains("has no key-encryption key"));
        assert!(error(&"0".repeat(64)).contains("line 1: a key-encryption key is 64"));
        let twice = format!("{ONE}\n{}\n", ONE.to_uppercase());
        assert!(error(&twice).contains("line 2: this key-encryption key is listed twice"));
    }

    #[test]
    fn a_created_file_is_private_readable_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.kek");
        KeyEncryptionKeys::create_file(&path, &OsRandom).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        KeyEncryptionKeys::from_file(&path).unwrap();
        KeyEncryptionKeys::from_credential_in(dir.path(), "a.kek").unwrap();
        assert!(matches!(
            KeyEncryptionKeys::create_file(&path, &OsRandom),
            Err(KekError::File { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists
        ));
        for name in ["", "..", "../a.kek"] {
            let refused = KeyEncryptionKeys::from_credential_in(dir.path(), name).unwrap_err().to_string();
            assert!(refused.contains("is not the name of a systemd credential"), "{refused}");
        }
    }

    #[test]
    fn an_unset_variable_is_named() {
        let error = KeyEncryptionKeys::from_env("DQKD_TEST_NEVER_SET").unwrap_err();
        assert!(error.to_string().contains("DQKD_TEST_NEVER_SET"));
    }

    #[test]
    fn debug_shows_ids_only() {
        let text = format!("{:?}", KeyEncryptionKeys::parse(ONE, "x").unwrap());
        assert!(!text.contains(&ONE[..8]), "{text}");
    }
}
