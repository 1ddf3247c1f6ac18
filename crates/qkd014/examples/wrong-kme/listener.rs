//! Mutual TLS: the client of a connection, and its requests.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use mtls::identity::{ClientIdentity, IdentityRules, SaeIdentitySource, identify};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, Client};
use crate::directory::Site;
use crate::fault::{Fault, Faults};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// TLS of one KME: 1.2 and 1.3, HTTP/1.1 and 2, a client certificate of `ca`.
pub(crate) fn server_config(site: &Site, ca: &Path, faults: Faults) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier =
        if faults.has(Fault::NoCertificateNeeded) { verifier.allow_unauthenticated() } else { verifier };
    let mut verifier = verifier.build()?;
    if faults.has(Fault::AnyCa) {
        verifier = Arc::new(AnyChain(verifier));
    }
    let key = PrivateKeyDer::from_pem_file(&site.key)
        .with_context(|| format!("{} has no private key", site.key.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&site.cert)?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("{} has no certificates", file.display()))
}

/// Serves connections for ever.
pub(crate) async fn serve(tcp: TcpListener, tls: Arc<ServerConfig>, api: Api, trust_domain: String) {
    let rules = IdentityRules { trust_domain, sae_sources: vec![SaeIdentitySource::Spiffe] };
    let rules = Arc::new(rules);
    loop {
        // The client has gone already. Anything worse makes a test fail.
        let Ok((stream, _)) = tcp.accept().await else { continue };
        let (tls, api, rules) = (TlsAcceptor::from(Arc::clone(&tls)), api.clone(), Arc::clone(&rules));
        tokio::spawn(async move { connection(stream, tls, api, &rules).await });
    }
}

/// One connection; a handshake that fails ends it.
async fn connection(stream: TcpStream, tls: TlsAcceptor, api: Api, rules: &IdentityRules) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else { return };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let client = leaf.map_or(Client::Nobody, |leaf| {
        let identity = ClientIdentity::new(identify(leaf, rules));
        identity.sae().map_or(Client::Stranger, |sae| Client::Sae(sae.id().as_str().to_owned()))
    });
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (api, client) = (api.clone(), client.clone());
        async move { Ok::<_, Infallible>(api.answer(&client, request.map(Body::new)).await) }
    });
    // A broken connection is the client's problem.
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// [`Fault::AnyCa`]: accepts a certificate of any CA and checks only that the client has its key.
#[derive(Debug)]
struct AnyChain(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyChain {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
