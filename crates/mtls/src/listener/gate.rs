//! Who may pass a listener: mutual TLS with the certificates in force, and only for the kinds of clients that
//! have business there.
//!
//! A certificate of another kind is refused inside the handshake, with the alert `access_denied`. So it never
//! holds a connection.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ServerConfig;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::FromDer as _;

use super::counts::Refusal;
use crate::error::TlsError;
use crate::identity::{Identity, IdentityError, IdentityRules, Kind, identify};
use crate::material::Material;
use crate::store::TlsStore;
use crate::versions::Versions;

tokio::task_local! {
    /// Whom the certificate of the handshake names: the verifier cannot hand it over in another way.
    static FOUND: RefCell<Option<Result<Identity, IdentityError>>>;
}

/// The TLS of one listener.
pub(super) struct Gate {
    store: Arc<TlsStore>,
    rules: IdentityRules,
    versions: Versions,
    accepts: &'static [Kind],
    current: ArcSwapOption<Current>,
}

/// What is made from the certificates in force.
struct Current {
    material: Arc<Material>,
    config: Arc<ServerConfig>,
}

/// A client that passed.
pub(super) struct Admitted {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) identity: Identity,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// Why a client did not pass.
pub(super) struct Refused {
    pub(super) kind: Refusal,
    pub(super) reason: String,
}

impl Gate {
    pub(super) fn new(
        store: Arc<TlsStore>,
        rules: IdentityRules,
        versions: Versions,
        accepts: &'static [Kind],
    ) -> Self {
        Self { store, rules, versions, accepts, current: ArcSwapOption::empty() }
    }

    /// Notifies when other certificates are in force.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.store.changes()
    }

    /// Makes the handshake, which has no time limit here.
    pub(super) async fn admit(&self, stream: TcpStream) -> Result<Admitted, Refused> {
        let config = self.config().map_err(|error| Refused {
            kind: Refusal::Own,
            reason: format!("the certificates of this daemon cannot be used: {error}"),
        })?;
        let (shaken, found) = FOUND
            .scope(RefCell::default(), async {
                let shaken = TlsAcceptor::from(config).accept(stream).await;
                (shaken, FOUND.with(RefCell::take))
            })
            .await;
        match (shaken, found) {
            (Ok(stream), Some(Ok(identity))) => {
                let (_, connection) = stream.get_ref();
                let chain = connection.peer_certificates().unwrap_or_default();
                let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
                Ok(Admitted { stream, identity, chain })
            }
            (Err(error), Some(found)) if is_unwelcome(&error) => {
                Err(Refused { kind: Refusal::Identity, reason: self.objection(found) })
            }
            (Ok(_), found) => {
                let found = found.unwrap_or(Err(IdentityError::NoCertificate));
                Err(Refused { kind: Refusal::Identity, reason: self.objection(found) })
            }
            (Err(error), _) => {
                let kind = if is_certificate(&error) { Refusal::Certificate } else { Refusal::Handshake };
                Err(Refused { kind, reason: error.to_string() })
            }
        }
    }

    /// Verifies the chain of an open connection with the certificates and lists in force now.
    pub(super) fn check_again(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let [leaf, intermediates @ ..] = chain else { return Err(Error::NoCertificatesPresented) };
        self.store.material().client_verifier().verify_client_cert(leaf, intermediates, now)?;
        Ok(())
    }

    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let material = self.store.material();
        if let Some(current) = &*self.current.load()
            && Arc::ptr_eq(&current.material, &material)
        {
            return Ok(Arc::clone(&current.config));
        }
        let verifier = KindVerifier {
            chain: material.client_verifier(),
            rules: self.rules.clone(),
            accepts: self.accepts,
        };
        let config = material.server_with(Arc::new(verifier), self.versions)?;
        self.current.store(Some(Arc::new(Current { material, config: Arc::clone(&config) })));
        Ok(config)
    }

    fn objection(&self, found: Result<Identity, IdentityError>) -> String {
        match found {
            Ok(found) => {
                let accepts: Vec<_> = self.accepts.iter().map(Kind::to_string).collect();
                let (kind, name, accepts) = (found.kind(), found.name(), accepts.join(" or "));
                format!("the certificate names {kind} {name}; this listener takes only the kind {accepts}")
            }
            Err(error) => error.to_string(),
        }
    }
}

/// The first second after `now` at which a certificate of the chain is no longer valid.
pub(super) fn next_end(chain: &[CertificateDer<'_>], now: UnixTime) -> Option<u64> {
    let end = |certificate: &CertificateDer<'_>| {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
        u64::try_from(certificate.validity().not_after.timestamp()).ok()?.checked_add(1)
    };
    chain.iter().filter_map(end).filter(|end| *end > now.as_secs()).min()
}

fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn is_unwelcome(error: &io::Error) -> bool {
    let unwelcome = CertificateError::ApplicationVerificationFailure;
    matches!(cause(error), Some(Error::InvalidCertificate(found)) if *found == unwelcome)
}

fn is_certificate(error: &io::Error) -> bool {
    matches!(cause(error), Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented))
}

/// Verifies as `chain` does, and refuses whoever has no business at the listener.
struct KindVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    rules: IdentityRules,
    accepts: &'static [Kind],
}

impl fmt::Debug for KindVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindVerifier").field("accepts", &self.accepts).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for KindVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let found = identify(end_entity, &self.rules);
        let is_welcome = found.as_ref().is_ok_and(|found| self.accepts.contains(&found.kind()));
        let _ = FOUND.try_with(|cell| cell.replace(Some(found)));
        if is_welcome {
            return Ok(verified);
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
