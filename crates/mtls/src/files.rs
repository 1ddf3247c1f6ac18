//! The files of an identity: which there are, and reading them once.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::error::TlsError;
use super::secret_file;

/// The files of one identity, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Trust anchors.
    pub ca: PathBuf,
    /// The certificate, then its intermediates.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// Revocation lists, one of each CA of the chain. They stay in force after their `nextUpdate`.
    pub crl: Option<PathBuf>,
}

/// What a daemon presents and trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonTls {
    /// Its files. If there is an `sae_ca`, `ca` does not vouch for SAEs.
    pub files: TlsFiles,
    /// Trust anchors for SAEs, PEM. They vouch for nobody else.
    pub sae_ca: Option<PathBuf>,
    /// CAs that need no revocation list: each by its common name or its whole subject.
    pub crl_exempt: Vec<String>,
    /// Whether the public development keys may be used.
    pub development_keys: bool,
}

impl From<TlsFiles> for DaemonTls {
    fn from(files: TlsFiles) -> Self {
        Self { files, sae_ca: None, crl_exempt: Vec::new(), development_keys: false }
    }
}

/// The bytes of all files, each read once.
pub(super) struct Contents {
    pub(super) ca: Zeroizing<Vec<u8>>,
    pub(super) cert: Zeroizing<Vec<u8>>,
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) crl: Option<Zeroizing<Vec<u8>>>,
    pub(super) sae_ca: Option<Zeroizing<Vec<u8>>>,
}

impl Contents {
    /// Reads the files. Those of a daemon must keep the private key to themselves.
    pub(super) fn read(tls: &DaemonTls, is_daemon: bool) -> Result<Self, TlsError> {
        let files = &tls.files;
        let key = if is_daemon { read_secret(&files.key)? } else { read(&files.key)? };
        Ok(Self {
            ca: read(&files.ca)?,
            cert: read(&files.cert)?,
            key,
            crl: files.crl.as_deref().map(read).transpose()?,
            sae_ca: tls.sae_ca.as_deref().map(read).transpose()?,
        })
    }

    /// Changes when any file changes.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut all = Vec::new();
        for part in
            [Some(&self.ca), Some(&self.cert), Some(&self.key), self.crl.as_ref(), self.sae_ca.as_ref()]
        {
            all.push(u8::from(part.is_some()));
            all.extend_from_slice(digest(&SHA256, part.map_or(&[], |part| part)).as_ref());
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, &all).as_ref());
        fingerprint
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    std::fs::read(path).map(Zeroizing::new).map_err(unreadable(path))
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.read_to_end(&mut bytes).map_err(unreadable(path))?;
    let metadata = file.metadata().map_err(unreadable(path))?;
    secret_file::check(path, &metadata, || bytes.to_vec())
        .map_err(|what| TlsError::Content { file: path.to_owned(), what })?;
    Ok(bytes)
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> TlsError {
    let file = path.to_owned();
    move |source| TlsError::Read { file: file.clone(), source: Arc::new(source) }
}
