//! Why certificates cannot be used. Messages name files, never their contents.

use std::path::PathBuf;
use std::sync::Arc;

/// The files are not a usable identity.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{file} cannot be read")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A file does not hold what it should.
    #[error("{file} {what}")]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The parts do not fit together.
    #[error("the certificates cannot be used")]
    Unfit(#[source] Arc<rustls::Error>),
}
