//! The caller's identity, and the CA that it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mtls::{BundleError, TlsError, TlsFiles, TlsParts, TlsStore, open_bundle};

/// The certificate and key of an SAE, and the CA of the KMEs that it calls. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Credentials(pub(crate) Arc<TlsStore>);

/// Why certificates and keys cannot be used. The text names the file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A certificate or key is missing, is not valid, or does not fit the others.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bundle or its password is wrong.
    #[error("cannot use {file}")]
    Bundle {
        /// The bundle.
        file: PathBuf,
        /// Why.
        source: BundleError,
    },
}

impl Credentials {
    /// From PEM files: `ca`, the CA certificates of the KMEs; `cert`, the SAE's certificate and its
    /// intermediates; `key`, its private key.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_pem_files(
        ca: impl AsRef<Path>,
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, CredentialsError> {
        let [ca, cert, key] = [ca.as_ref(), cert.as_ref(), key.as_ref()].map(Path::to_owned);
        Ok(Self(TlsStore::open(TlsFiles { ca, cert, key, crl: None })?))
    }

    /// From `ca`, PEM as above, and `bundle`, a `.p12` file with the SAE's certificate and key.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_p12_file(
        ca: impl AsRef<Path>,
        bundle: impl AsRef<Path>,
        password: &str,
    ) -> Result<Self, CredentialsError> {
        let [ca, bundle] = [ca.as_ref(), bundle.as_ref()].map(Path::to_owned);
        let read = |file: &Path| {
            std::fs::read(file).map_err(|source| CredentialsError::Read { file: file.to_owned(), source })
        };
        let opened = open_bundle(&read(&bundle)?, password)
            .map_err(|source| CredentialsError::Bundle { file: bundle.clone(), source })?;
        let parts = TlsParts { ca_pem: read(&ca)?, chain_der: opened.chain_der, key_der: opened.key_der };
        let names = TlsFiles { ca, cert: bundle.clone(), key: bundle, crl: None };
        Ok(Self(TlsStore::from_parts(parts, names)?))
    }
}

/// For programs that replace certificates while they run: connections made after [`TlsStore::reload`] use the
/// new ones.
impl From<Arc<TlsStore>> for Credentials {
    fn from(tls: Arc<TlsStore>) -> Self {
        Self(tls)
    }
}
