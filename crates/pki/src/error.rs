//! What can go wrong with an authority. Messages name files, never their contents.

use std::path::PathBuf;

use kme::RandomError;

/// Nothing was issued or revoked.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or folder cannot be read or written.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried: `read`, `write` or the like.
        verb: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file exists already.
    #[error("{0} exists and was not changed (--force replaces certificates, nothing replaces an authority)")]
    Exists(PathBuf),
    /// The folder has no authority.
    #[error("{0} has no authority; `dqkd pki init` makes one")]
    NoAuthority(PathBuf),
    /// A file of the authority is damaged.
    #[error("{path} {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The order is refused. The message says what is allowed.
    #[error("{0}")]
    Refused(String),
    /// No certificate in force has the name.
    #[error("no certificate in force was issued for {0}")]
    NotIssued(String),
    /// The random source failed.
    #[error("no serial number could be drawn")]
    Random(#[from] RandomError),
    /// The certificate library failed.
    #[error("the certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// The root's private key is under a passphrase, which was not given.
    #[error(
        "the root's private key is under a passphrase: give --root-passphrase-file or DQKD_ROOT_PASSPHRASE"
    )]
    NeedsPassphrase,
    /// The passphrase is not that of the root's private key.
    #[error("that is not the passphrase of the root's private key")]
    WrongPassphrase,
    /// The root's private key could not be put under a passphrase.
    #[error("the root's private key could not be encrypted: {0}")]
    Seal(String),
    /// The `.p12` bundle could not be made.
    #[error("the .p12 bundle could not be made: {0}")]
    Bundle(p12_keystore::error::Error),
}
