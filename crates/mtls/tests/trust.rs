//! Which CA vouches for whom, and which revocation lists are taken up: real files, real handshakes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use mtls::identity::Kind;
use mtls::*;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Ca {
    serial: u64,
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Ca {
    fn params(name: &str) -> CertificateParams {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn root(name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { serial: 0, params, key, pem }
    }

    fn below(&self, name: &str) -> Self {
        let (mut params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let serial = 1000 + name.len() as u64;
        params.serial_number = Some(SerialNumber::from(serial));
        let pem = params.signed_by(&key, &self.issuer()).unwrap().pem();
        Self { serial, params, key, pem }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// A list with `number` that revokes `serials`.
    fn list(&self, number: u64, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, u8::try_from(number).unwrap()),
            next_update: date_time_ymd(2036, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()).unwrap().pem().unwrap()
    }

    /// Certificate and key for `path` of a SPIFFE ID.
    fn issue(&self, path: &str, serial: u64, usages: &[ExtendedKeyUsagePurpose]) -> (String, String) {
        let uri = format!("spiffe://{}/{path}", testkit::TRUST_DOMAIN);
        self.issue_uris(&[&uri], serial, usages)
    }

    fn issue_uris(&self, uris: &[&str], serial: u64, usages: &[ExtendedKeyUsagePurpose]) -> (String, String) {
        let mut params = named("leaf");
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = usages.to_vec();
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer()).unwrap().pem(), key.serialize_pem())
    }
}

/// A folder with the files of a site and its clients.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// KME site-a, issued by `issuing` with serial number 1.
    fn site(&self, ca: &[&Ca], issuing: &Ca, lists: Option<&str>) -> DaemonTls {
        let (cert, key) = issuing.issue("kme/site-a", 1, &[ServerAuth, ClientAuth]);
        let ca: String = ca.iter().map(|ca| ca.pem.as_str()).collect();
        let files = TlsFiles {
            ca: self.write("ca.pem", &ca),
            cert: self.write("site.pem", &format!("{cert}{}", issuing.pem)),
            key: self.write("site.key", &key),
            crl: lists.map(|lists| self.write("crl.pem", lists)),
        };
        std::fs::set_permissions(&files.key, mode(0o600)).unwrap();
        DaemonTls::from(files)
    }

    /// A holder of `leaf`, who sends `chain` too and trusts `ca`.
    fn holder(&self, leaf: (String, String), chain: &[&Ca], ca: &Ca) -> Arc<TlsStore> {
        let chain: String = chain.iter().map(|ca| ca.pem.as_str()).collect();
        let files = TlsFiles {
            ca: self.write("holder-ca.pem", &ca.pem),
            cert: self.write("holder.pem", &format!("{}{chain}", leaf.0)),
            key: self.write("holder.key", &leaf.1),
            crl: None,
        };
        TlsStore::open(files).unwrap()
    }
}

fn mode(bits: u32) -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(bits)
}

/// What `server` thinks of `client`.
async fn verdict(server: &Arc<TlsStore>, client: &Arc<TlsStore>) -> Result<(), String> {
    let (at_server, _) = handshake(server, client).await;
    at_server
}

/// What both think of each other.
async fn handshake(
    server: &Arc<TlsStore>,
    client: &Arc<TlsStore>,
) -> (Result<(), String>, Result<(), String>) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let acceptor = server.acceptor(Versions::Latest);
    let accepting = async {
        let (stream, _) = tcp.accept().await.unwrap();
        acceptor.accept(stream).await.map(|_| ()).map_err(|error| error.to_string())
    };
    let offer = Offer { tls: OfferedTls::V1_3, alpn: &[], certificate: true };
    let dialer = Dialer::new(client.clone());
    let dialing =
        async { dialer.dial("localhost", port, offer).await.map(|_| ()).map_err(|error| error.to_string()) };
    tokio::join!(accepting, dialing)
}

fn refusal(tls: DaemonTls) -> String {
    kme::causes(&TlsStore::open_daemon(tls).unwrap_err())
}

fn says(result: Result<(), String>, words: &str) {
    let text = result.unwrap_err();
    assert!(text.contains(words), "{text}");
}

/// Whether the peer listener of a site serves `client`.
async fn is_served(site: &Arc<TlsStore>, client: Arc<TlsStore>) -> bool {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", tcp.local_addr().unwrap().port());
    let tls = ListenerTls::Mutual {
        store: site.clone(),
        rules: testkit::spiffe_rules(),
        accepts: &[Kind::Kme],
        versions: Versions::Latest,
    };
    let router = Router::new().route("/", get(|| async { "served" }));
    let stop = CancellationToken::new();
    let serving = listener::serve("peer", tcp, tls, router, ListenerLimits::default(), stop.clone());
    let serving = tokio::spawn(serving);
    let client =
        HttpsClient::new(client, ExpectedServer::HostName, testkit::TRUST_DOMAIN, HttpVersion::Http2)
            .unwrap();
    let answer = client.send(Request::get(url).body(Full::new(Bytes::new())).unwrap()).await;
    drop(client);
    stop.cancel();
    serving.await.unwrap();
    answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

#[tokio::test]
async fn a_listener_takes_one_spelling_of_a_name_with_the_right_key_usages() {
    const GOOD: &str = "spiffe://dqkd.example/kme/site-b";
    let root = Ca::root("root");
    let folder = Folder::new();
    let site = TlsStore::open_daemon(folder.site(&[&root], &root, None)).unwrap();
    let both = &[ServerAuth, ClientAuth][..];
    for (uris, usages, is_good) in [
        (&[GOOD][..], both, true),
        (&[GOOD], &[ClientAuth], false),
        (&[GOOD], &[], false),
        (&[GOOD, "https://site-b.example/"], both, false),
        (&["https://site-b.example/", GOOD], both, false),
        (&[GOOD, "spiffe://dqkd.example/sae/alice"], both, false),
        (&["spiffe://dqkd.example/kme/site%2Db"], both, false),
        (&["SPIFFE://dqkd.example/kme/site-b"], both, false),
        (&["spiffe://DQKD.example/kme/site-b"], both, false),
        (&["spiffe://dqkd.example/KME/site-b"], both, false),
    ] {
        let client = folder.holder(root.issue_uris(uris, 2, usages), &[], &root);
        assert_eq!(is_served(&site, client).await, is_good, "{uris:?} {usages:?}");
    }
}

/// Why `dqkd pki` offers no such constraints: webpki refuses whatever is below them, right or wrong.
#[tokio::test]
async fn name_constraints_of_uris_would_refuse_everybody() {
    let root = Ca::root("root");
    let mut params = Ca::params("issuing");
    // permittedSubtrees with one uniformResourceIdentifier, "dqkd.example".
    let mut tree = vec![0x86, 12];
    tree.extend_from_slice(b"dqkd.example");
    let mut subtrees = vec![0xa0, 16, 0x30, 14];
    subtrees.extend(tree);
    let mut constraints = vec![0x30, 18];
    constraints.extend(subtrees);
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], constraints);
    extension.set_criticality(true);
    params.custom_extensions = vec![extension];
    params.serial_number = Some(SerialNumber::from(7));
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, &root.issuer()).unwrap().pem();
    let issuing = Ca { serial: 7, params, key, pem };
    let refused = refusal(Folder::new().site(&[&root], &issuing, None));
    assert!(refused.contains("NameConstraintViolation"), "{refused}");
}

#[tokio::test]
async fn a_ca_of_saes_vouches_for_saes_only_and_is_alone_in_that() {
    let (root, corporate) = (Ca::root("root"), Ca::root("corporate"));
    let folder = Folder::new();
    let tls = DaemonTls {
        sae_ca: Some(folder.write("sae-ca.pem", &corporate.pem)),
        ..folder.site(&[&root], &root, None)
    };
    let site = TlsStore::open_daemon(tls).unwrap();
    let of = |ca: &Ca, path: &str, usages: &[_]| folder.holder(ca.issue(path, 2, usages), &[], &root);

    let alice = of(&corporate, "sae/alice", &[ClientAuth]);
    verdict(&site.for_saes(), &alice).await.unwrap();
    says(verdict(&site, &alice).await, "UnknownIssuer");
    // Its word for a site is worth nothing where sites call, nor is the sites' CA asked about SAEs.
    says(verdict(&site, &of(&corporate, "kme/site-b", &[ServerAuth, ClientAuth])).await, "UnknownIssuer");
    says(verdict(&site.for_saes(), &of(&root, "sae/alice", &[ClientAuth])).await, "UnknownIssuer");
    verdict(&site, &of(&root, "kme/site-b", &[ServerAuth, ClientAuth])).await.unwrap();
    // A foreign CA may leave the key usage out, but one for servers only is wrong.
    verdict(&site.for_saes(), &of(&corporate, "sae/alice", &[])).await.unwrap();
    says(verdict(&site.for_saes(), &of(&corporate, "sae/alice", &[ServerAuth])).await, "InvalidPurpose");
}

#[tokio::test]
async fn a_ca_of_saes_below_a_trusted_root_vouches_for_nobody_else() {
    let root = Ca::root("root");
    let (issuing, of_saes) = (root.below("issuing"), root.below("issuing of SAEs"));
    let deeper = of_saes.below("issuing of some SAEs");
    let folder = Folder::new();
    let tls = DaemonTls {
        sae_ca: Some(folder.write("sae-ca.pem", &of_saes.pem)),
        ..folder.site(&[&root], &issuing, None)
    };
    let site = TlsStore::open_daemon(tls).unwrap();
    let both = [ServerAuth, ClientAuth];
    let via = |ca: &Ca, chain: &[&Ca], path: &str| folder.holder(ca.issue(path, 2, &both), chain, &root);

    verdict(&site, &via(&issuing, &[&issuing], "kme/site-b")).await.unwrap();
    for (ca, chain) in [(&of_saes, &[&of_saes][..]), (&deeper, &[&deeper, &of_saes])] {
        says(verdict(&site, &via(ca, chain, "kme/site-b")).await, "vouches for SAEs only");
        verdict(&site.for_saes(), &via(ca, chain, "sae/alice")).await.unwrap();
        // Neither may such a CA name the servers that this site calls.
        let (_, at_site) = handshake(&via(ca, chain, "kme/site-b"), &site).await;
        says(at_site, "vouches for SAEs only");
    }
    says(verdict(&site.for_saes(), &via(&issuing, &[&issuing], "sae/alice")).await, "UnknownIssuer");
}

#[test]
fn a_ca_cannot_be_for_saes_only_and_for_everybody() {
    let root = Ca::root("root");
    let folder = Folder::new();
    let tls = DaemonTls {
        sae_ca: Some(folder.write("sae-ca.pem", &root.pem)),
        ..folder.site(&[&root], &root, None)
    };
    let text = refusal(tls);
    assert!(text.contains("sae-ca.pem has CA CN=root, which is in") && text.contains("ca.pem too"), "{text}");
}

#[tokio::test]
async fn a_reload_takes_up_new_saes_cas_and_refuses_wrong_ones() {
    let (root, old, new) = (Ca::root("root"), Ca::root("old"), Ca::root("new"));
    let folder = Folder::new();
    let sae_ca = folder.write("sae-ca.pem", &old.pem);
    let site = folder.site(&[&root], &root, None);
    let site = TlsStore::open_daemon(DaemonTls { sae_ca: Some(sae_ca), ..site }).unwrap();
    let alice = folder.holder(new.issue("sae/alice", 2, &[ClientAuth]), &[], &root);
    says(verdict(&site.for_saes(), &alice).await, "UnknownIssuer");
    folder.write("sae-ca.pem", &new.pem);
    assert!(site.reload().unwrap());
    verdict(&site.for_saes(), &alice).await.unwrap();
    folder.write("sae-ca.pem", &root.pem);
    assert!(site.reload().is_err());
    verdict(&site.for_saes(), &alice).await.unwrap();
}

/// A site below an issuing CA, both CAs with lists.
struct Listed {
    folder: Folder,
    root: Ca,
    issuing: Ca,
}

impl Listed {
    fn new() -> Self {
        let root = Ca::root("root");
        let issuing = root.below("issuing");
        Self { folder: Folder::new(), root, issuing }
    }

    fn lists(&self, number: u64, revoked: &[u64]) -> String {
        self.root.list(number, &[]) + &self.issuing.list(number, revoked)
    }

    fn site(&self, lists: &str) -> DaemonTls {
        self.folder.site(&[&self.root], &self.issuing, Some(lists))
    }

    fn write(&self, lists: &str) {
        self.folder.write("crl.pem", lists);
    }

    /// A KME with serial number 2.
    fn peer(&self) -> Arc<TlsStore> {
        let leaf = self.issuing.issue("kme/site-b", 2, &[ServerAuth, ClientAuth]);
        self.folder.holder(leaf, &[&self.issuing], &self.root)
    }
}

#[tokio::test]
async fn lists_that_would_lock_everybody_out_are_not_taken_up() {
    let network = Listed::new();
    let site = TlsStore::open_daemon(network.site(&network.lists(3, &[]))).unwrap();
    let peer = network.peer();
    verdict(&site, &peer).await.unwrap();
    let stranger = Ca::root("issuing");
    for (lists, says) in [
        (network.root.list(4, &[]), "crl.pem does not cover CA CN=issuing"),
        (network.issuing.list(4, &[]), "crl.pem does not cover CA CN=root"),
        (network.root.list(4, &[]) + &stranger.list(4, &[]), "CA CN=issuing that this CA did not sign"),
        (network.lists(4, &[1]), "crl.pem revokes the own certificate"),
        ("nonsense".to_owned(), "has no revocation list"),
    ] {
        network.write(&lists);
        let error = site.reload().unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
        assert_eq!(site.problem().as_deref(), Some(error.as_str()));
        verdict(&site, &peer).await.unwrap();
    }
    network.write(&network.lists(4, &[2]));
    assert!(site.reload().unwrap());
    assert_eq!(site.problem(), None);
    says(verdict(&site, &peer).await, "Revoked");
}

#[test]
fn a_daemon_starts_only_with_lists_of_all_cas_that_leave_it_its_own_certificate() {
    let network = Listed::new();
    for (lists, says) in [
        (network.root.list(4, &[]), "does not cover CA CN=issuing"),
        (network.lists(4, &[1]), "revokes the own certificate"),
    ] {
        let text = refusal(network.site(&lists));
        assert!(text.contains(says), "{text}");
    }
    // A trusted CA counts even if it has issued nothing here.
    let other = Ca::root("other");
    let site = |crl_exempt: Vec<String>| {
        let lists = network.lists(4, &[]);
        let tls = network.folder.site(&[&network.root, &other], &network.issuing, Some(&lists));
        DaemonTls { crl_exempt, ..tls }
    };
    assert!(refusal(site(Vec::new())).contains("does not cover CA CN=other"));
    assert!(refusal(site(vec!["CN=root".to_owned()])).contains("does not cover CA CN=other"));
    for exempt in ["other", "CN=other"] {
        let store = TlsStore::open_daemon(site(vec![exempt.to_owned()])).unwrap();
        assert_eq!(store.revocations().without_list, ["CN=other"]);
    }
}

#[tokio::test]
async fn an_old_list_does_not_undo_a_revocation() {
    let network = Listed::new();
    let before = network.lists(3, &[]);
    let site = TlsStore::open_daemon(network.site(&before)).unwrap();
    let peer = network.peer();
    network.write(&network.lists(4, &[2]));
    assert!(site.reload().unwrap());
    says(verdict(&site, &peer).await, "Revoked");
    network.write(&before);
    let error = site.reload().unwrap_err().to_string();
    assert!(error.contains("old list of CA CN=root: number 3") && error.contains("number 4"), "{error}");
    says(verdict(&site, &peer).await, "Revoked");
    // Nor does one that stands before its successor in the same file.
    network.write(&(before + &network.lists(5, &[2])));
    assert!(site.reload().unwrap());
    says(verdict(&site, &peer).await, "Revoked");
}

#[tokio::test]
async fn an_exemption_is_for_the_named_ca_alone() {
    let network = Listed::new();
    let corporate = Ca::root("corporate");
    let (named, other) = (corporate.below("named"), corporate.below("other"));
    let ca = [&network.root, &corporate];
    let lists = network.lists(3, &[2]) + &corporate.list(3, &[]);
    let site = network.folder.site(&ca, &network.issuing, Some(&lists));
    let site = TlsStore::open_daemon(DaemonTls { crl_exempt: vec!["named".to_owned()], ..site }).unwrap();
    let of = |issuing: &Ca, serial: u64| {
        let leaf = issuing.issue("kme/site-b", serial, &[ServerAuth, ClientAuth]);
        network.folder.holder(leaf, &[issuing], &network.root)
    };
    verdict(&site, &of(&named, 2)).await.unwrap();
    says(verdict(&site, &of(&other, 2)).await, "no revocation list covers CA CN=other");
    verdict(&site, &of(&network.issuing, 3)).await.unwrap();
    says(verdict(&site, &of(&network.issuing, 2)).await, "Revoked");
    // The CA itself is not exempt from the list of the CA above it.
    network.write(&(network.lists(4, &[2]) + &corporate.list(4, &[named.serial])));
    site.reload().unwrap();
    says(verdict(&site, &of(&named, 2)).await, "Revoked");
}

#[test]
fn a_private_key_that_others_can_read_is_refused() {
    let root = Ca::root("root");
    let folder = Folder::new();
    let tls = folder.site(&[&root], &root, None);
    let key = tls.files.key.clone();
    let set = |bits: u32| std::fs::set_permissions(&key, mode(bits)).unwrap();
    for bits in [0o604, 0o666, 0o644, 0o620] {
        set(bits);
        let text = refusal(tls.clone());
        assert!(text.contains(&format!("chmod 600 {}", key.display())), "{bits:o}: {text}");
    }
    set(0o400);
    let store = TlsStore::open_daemon(tls).unwrap();
    // A new one too.
    set(0o644);
    assert!(store.reload().unwrap_err().to_string().contains("chmod 600"));
    assert!(Path::new(&key).exists());
}

#[test]
fn a_daemon_whose_chain_leads_to_no_trusted_ca_does_not_start() {
    let (root, other) = (Ca::root("root"), Ca::root("other"));
    let folder = Folder::new();
    let text = refusal(folder.site(&[&other], &root, None));
    assert!(text.contains("site.pem does not lead to a CA of"), "{text}");
    let tls = folder.site(&[&root], &root.below("issuing"), None);
    std::fs::write(&tls.files.cert, root.below("x").issue("kme/site-a", 1, &[]).0).unwrap();
    assert!(TlsStore::open_daemon(tls).is_err());
}
