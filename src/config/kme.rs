//! The configuration of a KME (`dqkd serve`).
//!
//! Owns the rules that join tables: SAEs and KMEs, listeners, enough pool servers. Opens no sockets and reads none of
//! the files that it names.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use kme::{Admission, Directory, DirectoryError, KmeId, PoolServerId, SaeId};
use mtls::DaemonTls;
use mtls::identity::SaeIdentitySource;
use toml::Spanned;

use super::checker::{At, Checker, Field, Reference, Scope, quoted};
use super::error::Problem;
use super::identity_limits::IdentityLimits;
use super::raw::{RawKme, RawKmeFile, RawListen, RawPeer, RawPoolServer, RawSae};
use super::sections::{Etsi014Config, KeysConfig, LimitsConfig, PoolsConfig, RetrievalConfig, StoreConfig};
use super::settings::{DangerConfig, LogConfig, is_loopback, tls};
use super::url::BaseUrl;

/// `[listen]` of a KME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// Address for applications: ETSI GS QKD 014.
    pub sae: SocketAddr,
    /// Address for other KMEs.
    pub peer: SocketAddr,
    /// Address for operators.
    pub admin: SocketAddr,
}

impl ListenConfig {
    /// Whether the admin listener speaks plain HTTP. Otherwise it demands an operator certificate.
    pub fn admin_is_loopback(&self) -> bool {
        is_loopback(self.admin)
    }

    /// Whether nobody outside this machine can connect.
    fn is_local(&self) -> bool {
        [self.sae, self.peer, self.admin].into_iter().all(is_loopback)
    }

    fn check(checker: &mut Checker<'_>, raw: Option<Spanned<RawListen>>) -> Option<Self> {
        let (scope, raw) = Scope::open("listen", raw);
        let sae = checker.address(&scope, "sae", raw.sae, None);
        let peer = checker.address(&scope, "peer", raw.peer, None);
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
        let admin = checker.address(&scope, "admin", raw.admin, Some(default));
        checker.distinct_listeners(&[sae.clone(), peer.clone(), admin.clone()]);
        Some(Self { sae: sae?.value, peer: peer?.value, admin: admin?.value })
    }
}

/// Most replicas of one KME.
const REPLICAS_MAX: i64 = 64;

/// One `[[peer]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// The other KME.
    pub id: KmeId,
    /// The URLs of its replicas, or one for all of them. At least one, each once.
    pub urls: Vec<BaseUrl>,
    /// How many replicas it has. More downloads of a pool than that raise an alarm.
    pub replicas: u64,
    /// What it may ask and leave here.
    pub limits: IdentityLimits,
}

/// One `[[pool_server]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolServerEntry {
    /// Its ID, the same at every site.
    pub id: PoolServerId,
    /// The URL of its pool listener.
    pub url: BaseUrl,
}

/// The whole configuration of a KME. Paths are absolute and values checked.
#[derive(Clone, Debug)]
pub struct KmeConfig {
    /// This KME.
    pub id: KmeId,
    /// SPIFFE trust domain of all certificates.
    pub trust_domain: String,
    /// Which SAEs are admitted.
    pub sae_admission: Admission,
    /// Where the ID of an SAE is read from, in this order. At least one, each once.
    pub sae_identity: Vec<SaeIdentitySource>,
    /// Certificates.
    pub tls: DaemonTls,
    /// Listeners.
    pub listen: ListenConfig,
    /// Where keys are stored.
    pub store: StoreConfig,
    /// Sizes, numbers and life of keys.
    pub keys: KeysConfig,
    /// How strictly the standard is followed.
    pub etsi014: Etsi014Config,
    /// How often keys may be retrieved.
    pub retrieval: RetrievalConfig,
    /// The pools that keys are made from.
    pub pools: PoolsConfig,
    /// Bounds.
    pub limits: LimitsConfig,
    /// Logging.
    pub log: LogConfig,
    /// Other KMEs.
    pub peers: Vec<PeerConfig>,
    /// Random pool servers: at least two.
    pub pool_servers: Vec<PoolServerEntry>,
    /// Listed SAEs, each with its KME.
    pub saes: Vec<(SaeId, KmeId)>,
    /// What those of them may ask and leave that have limits of their own.
    pub sae_limits: HashMap<SaeId, IdentityLimits>,
    pub(super) directory: Directory,
    pub(super) references: Vec<Reference>,
}

impl KmeConfig {
    /// Which SAE belongs to which KME.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// `Err` has all complaints about the values.
    pub(super) fn check(mut checker: Checker<'_>, raw: RawKmeFile) -> Result<Self, Vec<Problem>> {
        let config = Self::build(&mut checker, raw);
        let (problems, references) = checker.finish();
        match config {
            Some(config) if problems.is_empty() => Ok(Self { references, ..config }),
            _ => Err(problems),
        }
    }

    fn build(checker: &mut Checker<'_>, raw: RawKmeFile) -> Option<Self> {
        let (scope, kme) = Scope::open("kme", raw.kme);
        let id = checker.daemon_id::<KmeId>(&scope, "id", kme.id.clone());
        let trust_domain = checker.trust_domain(&scope, kme.trust_domain.clone());
        let (sae_admission, sae_identity) = admission(checker, &scope, &kme);
        let listen = ListenConfig::check(checker, raw.listen);
        let danger = DangerConfig::check(raw.danger);
        let is_local = listen.is_some_and(|listen| listen.is_local());
        let tls = tls(checker, raw.tls, danger, is_local);
        let store = StoreConfig::check(checker, raw.store);
        let (keys, ttl) = KeysConfig::check(checker, raw.keys);
        let etsi014 = Etsi014Config::check(raw.etsi014);
        let retrieval = RetrievalConfig::check(checker, raw.retrieval, &ttl, etsi014);
        let pools = PoolsConfig::check(checker, raw.pools, raw.pool_server.len());
        let limits = LimitsConfig::check(checker, raw.limits, &keys);
        let log = LogConfig::check(checker, raw.log);
        let pool_servers = check_pool_servers(checker, raw.pool_server);
        let id = id?.value;
        let peers = check_peers(checker, raw.peer, &id, limits.kme);
        let saes = check_saes(checker, raw.sae, &id, &peers, limits.sae);
        Some(Self {
            id,
            trust_domain: trust_domain?,
            sae_admission,
            sae_identity,
            tls: tls?,
            listen: listen?,
            store: store?,
            keys,
            etsi014,
            retrieval,
            pools,
            limits,
            log,
            peers,
            pool_servers,
            saes: saes.listed,
            sae_limits: saes.limits,
            directory: saes.directory?,
            references: Vec::new(),
        })
    }
}

fn admission(checker: &mut Checker<'_>, scope: &Scope, raw: &RawKme) -> (Admission, Vec<SaeIdentitySource>) {
    let admissions = [("listed", Admission::Listed), ("chain", Admission::Chain)];
    let admission =
        checker.choice(scope, "sae_admission", raw.sae_admission.as_ref(), Admission::Listed, &admissions);
    let sources = [
        ("spiffe", SaeIdentitySource::Spiffe),
        ("dns", SaeIdentitySource::Dns),
        ("cn", SaeIdentitySource::Cn),
        ("fingerprint", SaeIdentitySource::Fingerprint),
    ];
    let Some(written) = &raw.sae_identity else { return (admission, vec![SaeIdentitySource::Spiffe]) };
    if written.get_ref().is_empty() {
        let allowed = format!("one or more of {}", quoted(&sources));
        checker.problem(&scope.at("sae_identity", Some(written)), "is empty", &allowed);
    }
    let mut identity = Vec::new();
    for item in written.get_ref() {
        let source = checker.choice(scope, "sae_identity", Some(item), SaeIdentitySource::Spiffe, &sources);
        let known = sources.iter().any(|(name, _)| name == item.get_ref());
        if known && identity.contains(&source) {
            let what = format!("{:?} occurs twice", item.get_ref());
            checker.problem(&scope.at("sae_identity", Some(item)), &what, "each source once");
        }
        identity.push(source);
    }
    (admission, identity)
}

fn check_peers(
    checker: &mut Checker<'_>,
    raw: Vec<Spanned<RawPeer>>,
    own: &KmeId,
    all: IdentityLimits,
) -> Vec<PeerConfig> {
    let (mut ids, mut urls): (Vec<Field<KmeId>>, Vec<Field<BaseUrl>>) = (Vec::new(), Vec::new());
    let mut peers = Vec::new();
    for entry in raw {
        let (scope, raw) = Scope::open("peer", Some(entry));
        let id = checker.daemon_id::<KmeId>(&scope, "id", raw.id);
        let own_urls = checker.base_urls(&scope, raw.url);
        let listed = own_urls.as_ref().map_or(1, |urls| i64::try_from(urls.len()).unwrap_or(REPLICAS_MAX));
        let replicas = check_replicas(checker, &scope, raw.replicas, listed);
        let limits = IdentityLimits::of_peer(checker, raw.limits, all);
        if let Some(id) = id.as_ref().filter(|id| id.value == *own) {
            checker.problem(&id.at, &format!("{own} is this KME itself"), "the IDs of other KMEs");
        }
        if let (Some(id), Some(own_urls)) = (&id, &own_urls) {
            let urls = own_urls.iter().map(|url| url.value.clone()).collect();
            peers.push(PeerConfig { id: id.value.clone(), urls, replicas, limits });
        }
        ids.extend(id);
        urls.extend(own_urls.into_iter().flatten());
    }
    checker.distinct(&ids, "one [[peer]] for each KME");
    checker.distinct(&urls, "each URL once, and for one KME");
    peers
}

/// At least one replica for each URL; several may share one.
fn check_replicas(checker: &mut Checker<'_>, scope: &Scope, raw: Option<Spanned<i64>>, listed: i64) -> u64 {
    let replicas = checker.number(scope, "replicas", raw, listed, 1..=REPLICAS_MAX);
    if replicas.value < listed {
        let what = format!("{} replicas cannot have {listed} URLs", replicas.value);
        checker.problem(&replicas.at, &what, &format!("{listed} or more"));
    }
    replicas.value.unsigned_abs()
}

fn check_pool_servers(checker: &mut Checker<'_>, raw: Vec<Spanned<RawPoolServer>>) -> Vec<PoolServerEntry> {
    if raw.len() < 2 {
        let last = raw.last().map(Spanned::span);
        let what = format!("{} pool servers are too few", raw.len());
        checker.problem(&At::new("pool_server".into(), last), &what, "two or more [[pool_server]] entries");
    }
    let (mut ids, mut urls): (Vec<Field<PoolServerId>>, Vec<Field<BaseUrl>>) = (Vec::new(), Vec::new());
    let mut servers = Vec::new();
    for entry in raw {
        let (scope, raw) = Scope::open("pool_server", Some(entry));
        let id = checker.daemon_id::<PoolServerId>(&scope, "id", raw.id);
        let url = checker.base_url(&scope, raw.url);
        if let (Some(id), Some(url)) = (&id, &url) {
            servers.push(PoolServerEntry { id: id.value.clone(), url: url.value.clone() });
        }
        ids.extend(id);
        urls.extend(url);
    }
    checker.distinct(&ids, "one [[pool_server]] for each server");
    // One server under two names would be counted as two independent ones.
    checker.distinct(&urls, "one URL for each server");
    servers
}

/// What the `[[sae]]` entries say.
struct Saes {
    listed: Vec<(SaeId, KmeId)>,
    limits: HashMap<SaeId, IdentityLimits>,
    directory: Option<Directory>,
}

fn check_saes(
    checker: &mut Checker<'_>,
    raw: Vec<Spanned<RawSae>>,
    own: &KmeId,
    peers: &[PeerConfig],
    all: IdentityLimits,
) -> Saes {
    let mut entries: Vec<(Field<SaeId>, Field<KmeId>)> = Vec::new();
    let mut limits = HashMap::new();
    for entry in raw {
        let (scope, raw) = Scope::open("sae", Some(entry));
        let id = checker.id::<SaeId>(&scope, "id", raw.id);
        let kme = checker.daemon_id::<KmeId>(&scope, "kme", raw.kme);
        if let (Some(id), Some(own)) = (&id, raw.limits) {
            let own = IdentityLimits::of_one_sae(checker, Some(own), all);
            limits.insert(id.value.clone(), own);
        }
        if let (Some(id), Some(kme)) = (id, kme) {
            entries.push((id, kme));
        }
    }
    let saes: Vec<_> = entries.iter().map(|(id, kme)| (id.value.clone(), kme.value.clone())).collect();
    // There is a complaint already about peers that repeat an ID.
    let peers: HashSet<_> = peers.iter().map(|peer| &peer.id).filter(|id| *id != own).cloned().collect();
    match Directory::new(own.clone(), peers, saes.clone()) {
        Ok(directory) => Saes { listed: saes, limits, directory: Some(directory) },
        Err(error) => {
            let at = refused_entry(&error, &entries).unwrap_or_else(|| At::new("sae".into(), None));
            let allowed = "SAE IDs that occur once, differ from KME IDs, and live at this KME or a [[peer]]";
            checker.problem(&at, &error.to_string(), allowed);
            Saes { listed: saes, limits, directory: None }
        }
    }
}

/// The entry that [`Directory::new`] complains about.
fn refused_entry(error: &DirectoryError, entries: &[(Field<SaeId>, Field<KmeId>)]) -> Option<At> {
    match error {
        DirectoryError::SaeAndKme(name) => {
            entries.iter().find(|(id, _)| id.value.as_str() == name).map(|(id, _)| id.at.clone())
        }
        DirectoryError::DuplicateSae(sae) => {
            entries.iter().filter(|(id, _)| id.value == *sae).nth(1).map(|(id, _)| id.at.clone())
        }
        DirectoryError::UnknownHome { sae, kme } => entries
            .iter()
            .find(|(id, home)| id.value == *sae && home.value == *kme)
            .map(|(_, home)| home.at.clone()),
        DirectoryError::DuplicateKme(_) => None,
    }
}
