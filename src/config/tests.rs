//! What operators rely on: complaints that name line and remedy, overrides, defaults, and the sample files.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::kme::{Admission, Party, RetrievalMode};
use mtls::identity::SaeIdentitySource;

use super::check::check_with;
use super::load::parse;
use super::*;

/// The smallest KME file; `KEY = ...` lines are added in place of the marked tables.
const MINIMAL: &str = r#"[kme]
id = "site-a"
trust_domain = "dqkd.example"
[tls]
ca = "pki/ca.pem"
cert = "pki/a.pem"
key = "pki/a.key"
[listen]
sae = "0.0.0.0:8443"
peer = "0.0.0.0:9443"
[store]
url = "sqlite://a.db"
kek_file = "a.kek"
[[peer]]
id = "site-b"
url = "https://site-b.example:9443"
[[pool_server]]
id = "pool-1"
url = "https://pool-1.example:9643"
[[pool_server]]
id = "pool-2"
url = "https://pool-2.example:9643"
[[pool_server]]
id = "pool-3"
url = "https://pool-3.example:9643"
[[sae]]
id = "bob"
kme = "site-b"
"#;

const MINIMAL_POOL: &str = r#"[pool]
id = "pool-1"
trust_domain = "dqkd.example"
[tls]
ca = "ca.pem"
cert = "p.pem"
key = "p.key"
[listen]
pool = "0.0.0.0:9643"
"#;

fn parse_text(text: &str, env: &[(&str, &str)]) -> Result<ConfigFile, ConfigError> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(Path::new("site.toml"), Path::new("/etc/dqkd"), text, env)
}

fn kme(text: &str, env: &[(&str, &str)]) -> KmeConfig {
    match parse_text(text, env) {
        Ok(ConfigFile::Kme(config)) => *config,
        Ok(ConfigFile::Pool(_)) => panic!("a pool server"),
        Err(error) => panic!("{error}"),
    }
}

fn pool(text: &str) -> PoolServerConfig {
    match parse_text(text, &[]) {
        Ok(ConfigFile::Pool(config)) => *config,
        Ok(ConfigFile::Kme(_)) => panic!("a KME"),
        Err(error) => panic!("{error}"),
    }
}

fn complaint(text: &str, env: &[(&str, &str)]) -> String {
    parse_text(text, env).expect_err("must be refused").to_string()
}

/// The minimal file with `from` replaced; the replacement must happen.
fn with(from: &str, to: &str) -> String {
    assert!(MINIMAL.contains(from), "{from}");
    MINIMAL.replacen(from, to, 1)
}

/// The minimal file with a table added, and the line number of the table's first key.
fn plus(table: &str) -> (String, usize) {
    (format!("{MINIMAL}{table}\n"), MINIMAL.lines().count() + 2)
}

#[test]
fn the_minimal_file_has_the_documented_defaults() {
    let config = kme(MINIMAL, &[]);
    assert_eq!(config.sae_admission, Admission::Listed);
    assert_eq!(config.sae_identity, [SaeIdentitySource::Spiffe]);
    assert_eq!(config.listen.admin, SocketAddr::from(([127, 0, 0, 1], 9090)));
    assert!(config.listen.admin_is_loopback());
    assert!(config.store.migrate);
    let limits = &config.keys.limits;
    assert_eq!((limits.min_size_bits, limits.size_bits, limits.max_size_bits), (8, 256, 65_536));
    assert_eq!(
        (limits.max_per_request, limits.max_stored_per_pair, limits.max_additional_saes),
        (128, 4096, 8)
    );
    assert_eq!(config.keys.ttl, Duration::from_hours(24));
    assert_eq!(config.retrieval.mode, RetrievalMode::Once);
    assert!(config.retrieval.master_refetch);
    assert_eq!(config.retrieval.master_ttl, Duration::from_hours(1));
    assert!(!config.etsi014.strict);
    assert_eq!(config.retrieval.replay_window, Duration::ZERO);
    let pools = config.pools;
    assert_eq!((pools.pools_per_set, pools.pool_words, pools.pool_words_max), (3, 131_072, 1_048_576));
    assert_eq!(pools.pools_min, 3);
    assert_eq!((pools.set_ttl, pools.memory_max_mib), (Duration::from_mins(10), 256));
    let limits = config.limits;
    assert_eq!(
        (limits.request_timeout, limits.peer_timeout),
        (Duration::from_secs(5), Duration::from_secs(5))
    );
    assert_eq!(
        (limits.max_connections, limits.max_concurrent_requests, limits.max_body_kib),
        (4096, 1024, 256)
    );
    assert_eq!(limits.handshakes, HandshakesConfig { max: 512, max_per_address: 64 });
    assert_eq!(
        (limits.clock_skew_max, limits.shutdown_grace),
        (Duration::from_secs(30), Duration::from_secs(10))
    );
    assert_eq!(config.log, LogConfig { level: LogLevel::Info, format: LogFormat::Text });
    assert_eq!(config.directory().resolve("bob").unwrap().party, Party::Sae("bob".parse().unwrap()));
    assert!(config.directory().is_peer(&"site-b".parse().unwrap()));
}

#[test]
fn a_pool_server_has_the_documented_defaults() {
    let config = pool(MINIMAL_POOL);
    assert_eq!((config.memory_max_mib, config.owner_memory_max_mib, config.pools_max), (256, 128, 1024));
    assert_eq!((config.words_max, config.readers_max), (1 << 20, 16));
    assert_eq!((config.creations_per_minute.get(), &config.kmes), (600, &None));
    let listed = pool(&MINIMAL_POOL.replacen("[tls]", "kmes = [\"site-b\", \"site-a\"]\n[tls]", 1));
    assert_eq!(listed.kmes, Some(["site-a", "site-b"].map(|id| id.parse().unwrap()).into()));
    assert_eq!(config.ttl_max, Duration::from_hours(1));
    assert_eq!(config.listen.admin, SocketAddr::from(([127, 0, 0, 1], 9191)));
    assert_eq!(config.limits.max_connections, 1024);
    assert_eq!(config.limits.handshakes, HandshakesConfig { max: 512, max_per_address: 64 });
    assert_eq!(config.tls.files.key, Path::new("/etc/dqkd/p.key"));
}

#[test]
fn paths_start_at_the_directory_of_the_file() {
    let config = kme(&with("\"pki/ca.pem\"", "\"./pki/../ca.pem\""), &[]);
    assert_eq!(config.tls.files.ca, Path::new("/etc/dqkd/pki/../ca.pem"));
    assert_eq!(config.tls.files.cert, Path::new("/etc/dqkd/pki/a.pem"));
    assert_eq!(config.tls.files.crl, None);
    assert_eq!(config.store.location, StoreLocation::Sqlite("/etc/dqkd/a.db".into()));
    assert_eq!(config.store.location.url(), "sqlite:///etc/dqkd/a.db");
    assert_eq!(config.store.kek, KekSource::File("/etc/dqkd/a.kek".into()));
    let config = kme(&with("sqlite://a.db", "sqlite:///var/lib/a.db"), &[]);
    assert_eq!(config.store.location, StoreLocation::Sqlite("/var/lib/a.db".into()));
}

#[test]
fn an_unknown_key_names_its_line_and_the_allowed_ones() {
    let (text, line) = plus("[retrieval]\nmod = \"once\"");
    let caret = "\n    |\n 30 | mod = \"once\"\n    | ^^^";
    assert_eq!(
        complaint(&text, &[]),
        format!(
            "site.toml:{line}:1: retrieval.mod: unknown key \"mod\"; allowed: mode, master_refetch, \
             master_ttl, replay_window{caret}"
        )
    );
}

#[test]
fn an_unknown_table_or_list_entry_key_names_its_line() {
    let (text, line) = plus("[kyes]\nttl = \"1h\"");
    let told = complaint(&text, &[]);
    assert!(
        told.starts_with(&format!("site.toml:{}:2: kyes: unknown key \"kyes\"; allowed: ", line - 1)),
        "{told}"
    );
    assert!(told.contains("keys") && told.contains("pool_server"), "{told}");
    let told = complaint(&with("kme = \"site-b\"", "home = \"site-b\""), &[]);
    assert!(
        told.starts_with("site.toml:28:1: sae.home: unknown key \"home\"; allowed: id, kme, limits"),
        "{told}"
    );
}

#[test]
fn a_wrong_type_names_its_line_and_the_right_type() {
    let (text, line) = plus("[keys]\nsize_bits = \"256\"");
    let told = complaint(&text, &[]);
    let head =
        format!("site.toml:{line}:13: keys.size_bits: invalid type: string \"256\"; allowed: a whole number");
    assert!(told.starts_with(&head), "{told}");
    let (text, line) = plus("[keys]\nttl = 24");
    let told = complaint(&text, &[]);
    assert!(told.starts_with(&format!("site.toml:{line}:7: keys.ttl: invalid type")), "{told}");
    assert!(told.contains("allowed: text in quotes"), "{told}");
    let told = complaint(&with("[tls]\nca = \"pki/ca.pem\"", "[tls]\nca = []"), &[]);
    assert!(told.starts_with("site.toml:5:6: tls.ca: invalid type"), "{told}");
}

#[test]
fn a_syntax_error_names_its_line() {
    let told = complaint(&with("trust_domain = \"dqkd.example\"", "trust_domain = "), &[]);
    assert!(told.starts_with("site.toml:3:"), "{told}");
    let told = complaint(&format!("{MINIMAL}[kme]\n"), &[]);
    assert!(told.starts_with("site.toml:29:2: duplicate key"), "{told}");
}

#[test]
fn what_is_missing_is_named() {
    let told = complaint(&with("trust_domain = \"dqkd.example\"\n", ""), &[]);
    assert!(told.starts_with("site.toml:1:1: kme.trust_domain: is missing; allowed: "), "{told}");
    let told = complaint("[kme]\nid = \"a\"\n", &[]);
    for key in ["kme.trust_domain", "tls.ca", "tls.cert", "tls.key", "listen.sae", "listen.peer", "store.url"]
    {
        assert!(told.contains(&format!("{key}: is missing")), "{key} in {told}");
    }
    assert!(told.contains("store.kek_file: is missing; allowed: exactly one of"), "{told}");
    assert!(told.contains("pool_server: 0 pool servers are too few"), "{told}");
    for (text, what) in [("", "has no [kme] or [pool]"), ("[kme]\n[pool]\n", "has both")] {
        assert!(complaint(text, &[]).contains(what));
    }
}

/// Appends each table and demands that the complaint says what it must and where.
fn each_complains(rows: &[(&str, &str)]) {
    for (table, told) in rows {
        let (text, line) = plus(table);
        let complaints = complaint(&text, &[]);
        assert!(complaints.contains(*told), "{told}\nnot in\n{complaints}");
        // A rule about a default is shown at the table that caused it.
        let at_key = complaints.starts_with(&format!("site.toml:{line}:"));
        let at_table = complaints.starts_with(&format!("site.toml:{}:", line - 1));
        assert!(at_key || at_table, "{complaints}");
    }
}

#[test]
fn each_rule_on_keys_and_their_retrieval_names_line_and_remedy() {
    each_complains(&[
        ("[keys]\nsize_bits = 12", "keys.size_bits: 12 bits are not whole bytes; allowed: a multiple of 8"),
        ("[keys]\nmin_size_bits = 512", "keys.min_size_bits: 512 is more than keys.size_bits = 256"),
        ("[keys]\nmax_size_bits = 128", "keys.size_bits: 256 is more than keys.max_size_bits = 128"),
        (
            "[keys]\nmax_size_bits = 65544",
            "keys.max_size_bits: 65544 is out of range; allowed: a whole number from 8 to 65536",
        ),
        ("[keys]\nmax_per_request = 0", "keys.max_per_request: 0 is out of range"),
        (
            "[keys]\nmax_stored_per_pair = 10",
            "keys.max_per_request: 128 is more than keys.max_stored_per_pair = 10",
        ),
        ("[keys]\nmax_sae_id_count = -1", "keys.max_sae_id_count: -1 is out of range"),
        ("[keys]\nttl = \"0s\"", "keys.ttl: \"0s\" is out of range; allowed: 1ms to 366d"),
        (
            "[keys]\nttl = \"24\"",
            "keys.ttl: \"24\" is not a duration; allowed: a whole number and a unit (ms, s, m, h, d)",
        ),
        (
            "[retrieval]\nmode = \"twice\"",
            "retrieval.mode: \"twice\" is unknown; allowed: \"once\", \"until-expiry\"",
        ),
        (
            "[retrieval]\nmaster_refetch = true\n[etsi014]\nstrict = true",
            "retrieval.master_refetch: goes beyond the standard, but etsi014.strict = true; allowed: false",
        ),
        (
            "[retrieval]\nmode = \"until-expiry\"\n[etsi014]\nstrict = true",
            "retrieval.mode: goes beyond the standard, but etsi014.strict = true; allowed: \"once\"",
        ),
        (
            "[retrieval]\nreplay_window = \"1s\"\n[etsi014]\nstrict = true",
            "retrieval.replay_window: goes beyond the standard, but etsi014.strict = true; allowed: 0s",
        ),
    ]);
}

#[test]
fn each_rule_on_pools_limits_and_names_names_line_and_remedy() {
    each_complains(&[
        ("[retrieval]\nreplay_window = \"25h\"", "retrieval.replay_window: 25h is longer than keys.ttl = 1d"),
        (
            "[pools]\npools_per_set = 9",
            "pools.pools_per_set: 9 is out of range; allowed: a whole number from 2 to 8",
        ),
        ("[pools]\npools_per_set = 4", "pools.pools_per_set: 4 is more than the 3 [[pool_server]] entries"),
        ("[pools]\npools_min = 1", "pools.pools_min: 1 is out of range; allowed: a whole number from 2 to 8"),
        (
            "[pools]\npools_min = 4",
            "pools.pools_min: 4 is more than pools.pools_per_set = 3; allowed: pools_min <= pools_per_set",
        ),
        ("[pools]\npool_words = 100000", "pools.pool_words: 100000 is not a power of two"),
        (
            "[pools]\npool_words = 8192",
            "pools.pool_words: 8192 is out of range; allowed: a whole number from 16384 to 134217728",
        ),
        (
            "[pools]\npool_words = 2097152",
            "pools.pool_words: 2097152 is more than pools.pool_words_max = 1048576",
        ),
        (
            "[pools]\nmemory_max_mib = 40",
            "pools.memory_max_mib: 40 MiB cannot hold two sets of 3 pools of 1048576 words; allowed: 48 or more",
        ),
        (
            "[limits]\nrequest_timeout = \"1d\"",
            "limits.request_timeout: \"1d\" is out of range; allowed: 1ms to 5m",
        ),
        ("[limits]\nmax_connections = 0", "limits.max_connections: 0 is out of range"),
        (
            "[limits]\nmax_handshakes_per_address = 101\nmax_handshakes = 100",
            "limits.max_handshakes_per_address: 101 is more than limits.max_handshakes = 100",
        ),
        ("[log]\nlevel = \"verbose\"", "log.level: \"verbose\" is unknown; allowed: \"error\", \"warn\""),
        ("[log]\nformat = \"xml\"", "log.format: \"xml\" is unknown; allowed: \"text\", \"json\""),
        (
            "[limits.sae]\nstored_keys = 4095",
            "limits.sae.stored_keys: 4095 is less than keys.max_stored_per_pair = 4096",
        ),
        ("[limits.kme]\nkey_ttl_max = \"367d\"", "limits.kme.key_ttl_max: \"367d\" is out of range"),
        (
            "[limits.kme]\nconnections = 0",
            "limits.kme.connections: 0 is out of range; allowed: a whole number",
        ),
        (
            "[[sae]]\nlimits = { requests_per_second = -1 }\nid = \"carol\"\nkme = \"site-a\"",
            "sae.limits.requests_per_second: -1 is out of range",
        ),
        ("[[sae]]\nid = \"bob\"\nkme = \"site-a\"", "sae.id: SAE bob is listed twice"),
        ("[[sae]]\nid = \"site-b\"\nkme = \"site-a\"", "sae.id: ID site-b names both an SAE and a KME"),
        ("[[peer]]\nid = \"site-a\"\nurl = \"https://x\"", "peer.id: site-a is this KME itself"),
        ("[[peer]]\nid = \"site-b\"\nurl = \"https://x\"", "peer.id: site-b occurs twice"),
        ("[[peer]]\nurl = []\nid = \"c\"", "peer.url: is empty; allowed: https://HOST"),
        (
            "[[peer]]\nurl = 1\nid = \"c\"",
            "peer.url: invalid type: integer \"1\"; allowed: text in quotes or a list of texts",
        ),
        (
            "[[peer]]\nreplicas = 1\nid = \"c\"\nurl = [\"https://x\", \"https://y\"]",
            "peer.replicas: 1 replicas cannot have 2 URLs; allowed: 2 or more",
        ),
        (
            "[[peer]]\nreplicas = 65\nid = \"c\"\nurl = \"https://x\"",
            "peer.replicas: 65 is out of range; allowed: a whole number from 1 to 64",
        ),
        ("[[pool_server]]\nid = \"pool-1\"\nurl = \"https://x\"", "pool_server.id: pool-1 occurs twice"),
    ]);
}

#[test]
fn each_rule_on_who_and_where_names_its_line() {
    for (from, to, told) in [
        ("kme = \"site-b\"", "kme = \"site-z\"", "site.toml:28:7: sae.kme: SAE bob lives at KME site-z"),
        ("id = \"bob\"", "id = \" \"", "site.toml:27:6: sae.id: is not an ID: an ID must not be blank"),
        ("\"dqkd.example\"", "\"Dqkd\"", "site.toml:3:16: kme.trust_domain: \"Dqkd\" is not a trust domain"),
        (
            "[tls]",
            "sae_identity = [\"dns\", \"x\"]\n[tls]",
            "site.toml:4:24: kme.sae_identity: \"x\" is unknown; allowed: \"spiffe\", \"dns\", \"cn\", \"fingerprint\"",
        ),
        ("[tls]", "sae_identity = []\n[tls]", "site.toml:4:16: kme.sae_identity: is empty"),
        ("[tls]", "sae_identity = [\"cn\", \"cn\"]\n[tls]", "kme.sae_identity: \"cn\" occurs twice"),
        (
            "[tls]",
            "sae_admission = \"all\"\n[tls]",
            "kme.sae_admission: \"all\" is unknown; allowed: \"listed\", \"chain\"",
        ),
        (
            "\"0.0.0.0:9443\"",
            "\"0.0.0.0:8443\"",
            "site.toml:10:8: listen.peer: 0.0.0.0:8443 collides with listen.sae",
        ),
        ("\"0.0.0.0:9443\"", "\"127.0.0.1:8443\"", "listen.peer: 127.0.0.1:8443 collides with listen.sae"),
        (
            "\"0.0.0.0:9443\"",
            "\"localhost:9443\"",
            "listen.peer: \"localhost:9443\" is not an address; allowed: ADDRESS:PORT",
        ),
        (
            "https://site-b.example:9443",
            "http://site-b.example:9443",
            "site.toml:16:7: peer.url: is not the address of a daemon; allowed: https://HOST",
        ),
        (
            "https://pool-2.example:9643",
            "https://pool-1.example:9643",
            "site.toml:22:7: pool_server.url: https://pool-1.example:9643 occurs twice",
        ),
    ] {
        let complaints = complaint(&with(from, to), &[]);
        assert!(complaints.contains(told), "{told}\nnot in\n{complaints}");
    }
}

#[test]
fn each_rule_on_the_store_and_the_files_names_its_line() {
    for (from, to, told) in [
        (
            "sqlite://a.db",
            "sqlite::memory:",
            "site.toml:12:7: store.url: is not a store; allowed: sqlite://FILE",
        ),
        (
            "kek_file = \"a.kek\"",
            "kek_file = \"a.kek\"\npassword_file = \"pw\"",
            "store.password_file: a SQLite file has no password; allowed: with postgres:// only",
        ),
        (
            "kek_file = \"a.kek\"\n",
            "",
            "site.toml:11:1: store.kek_file: is missing; allowed: exactly one of kek_file, kek_env, kek_credential",
        ),
        (
            "kek_file = \"a.kek\"",
            "kek_file = \"a.kek\"\nkek_env = \"K\"",
            "site.toml:14:11: store.kek_env: is a second source",
        ),
        (
            "kek_file = \"a.kek\"",
            "kek_env = \"a-b\"",
            "store.kek_env: is not the name of an environment variable",
        ),
        (
            "kek_file = \"a.kek\"",
            "kek_credential = \"../x\"",
            "store.kek_credential: is not the name of a credential",
        ),
        ("ca = \"pki/ca.pem\"", "ca = \"\"", "site.toml:5:6: tls.ca: is not a path"),
    ] {
        let complaints = complaint(&with(from, to), &[]);
        assert!(complaints.contains(told), "{told}\nnot in\n{complaints}");
    }
}

#[test]
fn each_rule_of_a_pool_server_names_line_and_remedy() {
    for (key, told) in [
        (
            "owner_memory_max_mib = 512",
            "site.toml:4:24: pool.owner_memory_max_mib: 512 is more than pool.memory_max_mib = 256",
        ),
        ("words_max = 1000000", "site.toml:4:13: pool.words_max: 1000000 is not a power of two"),
        ("words_max = 33554432", "pool.words_max: 33554432 words take 256 MiB, more than an owner may have"),
        (
            "memory_max_mib = 15\nowner_memory_max_mib = 15",
            "pool.words_max: 1048576 words take 8 MiB, more than half of pool.memory_max_mib = 15",
        ),
        ("creations_per_minute = 0", "pool.creations_per_minute: 0 is out of range"),
        ("kmes = []", "site.toml:4:8: pool.kmes: is empty"),
        (
            "kmes = [\"site-a\", \"site-a\"]",
            "site.toml:4:19: pool.kmes: site-a occurs twice; allowed: each KME once",
        ),
        ("kmes = [\"\"]", "pool.kmes: is not an ID"),
        ("ttl_max = \"0h\"", "pool.ttl_max: \"0h\" is out of range"),
        ("readers_max = 0", "pool.readers_max: 0 is out of range"),
        ("pools_max = 0", "pool.pools_max: 0 is out of range"),
        ("reader_max = 1", "pool.reader_max: unknown key \"reader_max\"; allowed: id, trust_domain"),
    ] {
        let complaints = complaint(&MINIMAL_POOL.replacen("[tls]", &format!("{key}\n[tls]"), 1), &[]);
        assert!(complaints.contains(told), "{told}\nnot in\n{complaints}");
    }
}

#[test]
fn a_wrong_url_in_a_list_is_named_at_its_own_place() {
    for (to, told) in [
        (
            "[\"https://b1\", \"http://b2\"]",
            "site.toml:16:22: peer.url: is not the address of a daemon; allowed: https://HOST",
        ),
        (
            "[\"https://b1\", \"https://b1\"]",
            "site.toml:16:22: peer.url: https://b1 occurs twice; allowed: each URL once, and for one KME",
        ),
        (
            "[\"https://b1\", 2]",
            "site.toml:16:22: peer.url: invalid type: integer \"2\"; allowed: text in quotes",
        ),
    ] {
        let complaints = complaint(&with("\"https://site-b.example:9443\"", to), &[]);
        assert!(complaints.contains(told), "{told}\nnot in\n{complaints}");
    }
}

#[test]
fn a_peer_has_one_url_or_several_and_as_many_replicas_or_more() {
    for (to, urls, replicas) in [
        ("\"https://b1\"", &["https://b1"][..], 1),
        ("[\"https://b1\"]", &["https://b1"], 1),
        ("[\"https://b1\", \"https://B2:1\"]", &["https://b1", "https://b2:1"], 2),
        ("\"https://b1\"\nreplicas = 3", &["https://b1"], 3),
    ] {
        let config = kme(&with("\"https://site-b.example:9443\"", to), &[]);
        let peer = &config.peers[0];
        assert_eq!(peer.urls.iter().map(BaseUrl::as_str).collect::<Vec<_>>(), urls);
        assert_eq!(peer.replicas, replicas, "{to}");
    }
}

#[test]
fn all_complaints_come_at_once() {
    let (text, _) = plus("[keys]\nttl = \"x\"\nmax_per_request = 0\n[log]\nlevel = \"x\"");
    let ConfigError::Invalid(problems) = parse_text(&text, &[]).unwrap_err() else { panic!("{text}") };
    let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["keys.max_per_request", "keys.ttl", "log.level"]);
}

#[test]
fn two_pool_servers_make_sets_of_two_and_one_is_too_few() {
    let two = with("[[pool_server]]\nid = \"pool-3\"\nurl = \"https://pool-3.example:9643\"\n", "");
    let pools = kme(&two, &[]).pools;
    assert_eq!((pools.pools_per_set, pools.pools_min), (2, 2));
    let one =
        two.replacen("[[pool_server]]\nid = \"pool-2\"\nurl = \"https://pool-2.example:9643\"\n", "", 1);
    let told = complaint(&one, &[]);
    assert!(told.contains("pool_server: 1 pool servers are too few; allowed: two or more"), "{told}");
}

#[test]
fn the_environment_overrides_values_of_every_type() {
    let config = kme(
        MINIMAL,
        &[
            ("DQKD__KEYS__TTL", "1h"),
            ("DQKD__KEYS__MAX_PER_REQUEST", "7"),
            ("DQKD__RETRIEVAL__MASTER_REFETCH", "false"),
            ("DQKD__KME__SAE_IDENTITY", "[\"dns\", \"cn\"]"),
            ("DQKD__KME__ID", "007"),
            ("DQKD__LISTEN__ADMIN", "\"127.0.0.1:0\""),
            ("DQKD__TLS__CRL", "crl.pem"),
            ("PATH", "/bin"),
            ("DQKD_LOG", "debug"),
        ],
    );
    assert_eq!(config.keys.ttl, Duration::from_hours(1));
    assert_eq!(config.keys.limits.max_per_request, 7);
    assert!(!config.retrieval.master_refetch);
    assert_eq!(config.sae_identity, [SaeIdentitySource::Dns, SaeIdentitySource::Cn]);
    // Text stays text, even if it looks like a number.
    assert_eq!(config.id.as_str(), "007");
    assert_eq!(config.listen.admin.port(), 0);
    assert_eq!(config.tls.files.crl, Some(PathBuf::from("/etc/dqkd/crl.pem")));
    assert_eq!(kme(MINIMAL, &[("DQKD__KME__SAE_IDENTITY", "fingerprint,cn")]).sae_identity.len(), 2);
}

#[test]
fn an_entry_has_the_limits_of_its_table_except_those_that_it_says() {
    let text = with(
        "id = \"site-b\"\nurl",
        "id = \"site-b\"\nlimits = { tombstones = 7, key_ttl_max = \"2h\" }\nurl",
    );
    let text = format!(
        "{text}limits = {{ requests_per_second = 10 }}\n[[sae]]\nid = \"carol\"\nkme = \"site-a\"\n\
         [limits.sae]\nkeys_per_second = 5\nrequests_per_second = 3\n[limits.kme]\nstored_mib = 9\n"
    );
    let config = kme(&text, &[]);
    let bob = config.sae_limits["bob"];
    assert_eq!((bob.rates.requests_per_second, bob.rates.keys_per_second), (10, 5));
    assert_eq!(bob.stored, config.limits.sae.stored);
    assert!(!config.sae_limits.contains_key("carol"));
    assert_eq!(config.limits.sae.rates.requests_per_second, 3);
    let peer = config.peers[0].limits;
    assert_eq!((peer.stored.tombstones, peer.stored.mib), (7, 9));
    assert_eq!(peer.stored.key_ttl_max, Duration::from_hours(2));
    assert_eq!(config.limits.kme.stored.key_ttl_max, Duration::from_hours(24));
    let longer = kme(MINIMAL, &[("DQKD__KEYS__TTL", "48h")]);
    assert_eq!(longer.limits.kme.stored.key_ttl_max, Duration::from_hours(48));
}

#[test]
fn tables_within_tables_can_be_overridden_too() {
    let config =
        kme(MINIMAL, &[("DQKD__LIMITS__SAE__CONNECTIONS", "7"), ("DQKD__LIMITS__MAX_BODY_KIB", "9")]);
    assert_eq!((config.limits.sae.rates.connections, config.limits.max_body_kib), (7, 9));
    let told = complaint(MINIMAL, &[("DQKD__LIMITS__KME__MOD", "1")]);
    assert!(told.contains("names no key of [limits.kme]; allowed: DQKD__LIMITS__KME__REQUESTS"), "{told}");
    let (text, _) = plus("[limits]\nsae = 1");
    let told = complaint(&text, &[("DQKD__LIMITS__SAE__CONNECTIONS", "7")]);
    assert!(told.contains("limits.sae: is not a table"), "{told}");
    let (text, line) = plus("[limits.sae]\nconnection = 1");
    let told = complaint(&text, &[]);
    assert!(told.starts_with(&format!("site.toml:{line}:1: limits.sae.connection: unknown key")), "{told}");
}

#[test]
fn an_unknown_override_is_refused_with_the_allowed_names() {
    let told = complaint(MINIMAL, &[("DQKD__RETRIEVAL__MOD", "once")]);
    assert!(
        told.starts_with(
            "site.toml: environment variable DQKD__RETRIEVAL__MOD: names no key of [retrieval]; allowed: \
             DQKD__RETRIEVAL__MODE, DQKD__RETRIEVAL__MASTER_REFETCH"
        ),
        "{told}"
    );
    for name in ["DQKD__NOWHERE__TTL", "DQKD__", "DQKD__keys__TTL", "DQKD__POOL__ID"] {
        let told = complaint(MINIMAL, &[(name, "1")]);
        assert!(
            told.contains(&format!("variable {name}: names no section; allowed: DQKD__KME__KEY")),
            "{told}"
        );
    }
    for name in ["DQKD__KEYS", "DQKD__KEYS__", "DQKD__KEYS__TTL__X"] {
        assert!(complaint(MINIMAL, &[(name, "1")]).contains("names no key of [keys]"));
    }
}

#[test]
fn lists_of_tables_cannot_be_overridden() {
    for name in ["DQKD__PEER__URL", "DQKD__POOL_SERVER__0__URL", "DQKD__SAE"] {
        let told = complaint(MINIMAL, &[(name, "x")]);
        assert!(told.contains("is a list of tables, which the environment cannot override"), "{told}");
    }
}

#[test]
fn a_bad_override_names_the_variable_and_the_key() {
    let told = complaint(MINIMAL, &[("DQKD__KEYS__TTL", "1x")]);
    let head =
        "site.toml: environment variable DQKD__KEYS__TTL: keys.ttl: \"1x\" is not a duration; allowed: ";
    assert!(told.starts_with(head), "{told}");
    assert!(told.ends_with("  | DQKD__KEYS__TTL=1x\n  |                 ^^"), "{told}");
    let told = complaint(MINIMAL, &[("DQKD__KEYS__SIZE_BITS", "big")]);
    assert!(told.contains("keys.size_bits: has the wrong type; allowed: a whole number"), "{told}");
    let told = complaint(MINIMAL, &[("DQKD__STORE__MIGRATE", "yes")]);
    assert!(told.contains("store.migrate: has the wrong type; allowed: true or false"), "{told}");
    let told = complaint(MINIMAL, &[("DQKD__TLS__CA", "a\u{fffd}")]);
    assert!(told.contains("tls.ca: is not valid UTF-8"), "{told}");
}

#[test]
fn an_override_mends_what_the_file_lacks() {
    let text = with("[store]\nurl = \"sqlite://a.db\"\nkek_file = \"a.kek\"\n", "");
    let config =
        kme(&text, &[("DQKD__STORE__URL", "sqlite://b.db"), ("DQKD__STORE__KEK_CREDENTIAL", "dqkd.kek")]);
    assert_eq!(config.store.kek, KekSource::Credential("dqkd.kek".into()));
    assert_eq!(config.store.location, StoreLocation::Sqlite("/etc/dqkd/b.db".into()));
}

#[test]
fn complaints_never_repeat_what_may_be_secret() {
    let secret = "5ec2e7c0ffee";
    for (from, to) in [
        ("kek_file = \"a.kek\"", format!("kek = \"{secret}\"")),
        ("kek_file = \"a.kek\"", format!("kek_env = \"{secret}-\"")),
        ("sqlite://a.db", format!("mysql://dqkd:{secret}@db/x")),
        ("https://site-b.example:9443", format!("https://dqkd:{secret}@site-b.example")),
    ] {
        let error = parse_text(&with(from, &to), &[]).unwrap_err();
        assert!(!error.to_string().contains(secret), "{error}");
        assert!(!format!("{error:?}").contains(secret), "{error:?}");
    }
    let url = format!("postgres://u:{secret}@db");
    let error = parse_text(MINIMAL, &[("DQKD__STORE__KEK", &url)]).unwrap_err();
    assert!(!error.to_string().contains(secret), "{error}");
    let both = with("kek_file = \"a.kek\"", "kek_file = \"a.kek\"\npassword_file = \"pw\"");
    let error = parse_text(&both, &[("DQKD__STORE__URL", &url)]).unwrap_err();
    assert!(error.to_string().contains("store.password_file: is a second password"), "{error}");
    assert!(!error.to_string().contains(secret), "{error}");
    let config = kme(MINIMAL, &[("DQKD__STORE__URL", &url)]);
    assert!(!format!("{config:?}").contains(secret));
    assert_eq!(config.store.location.url(), url);
}

#[test]
fn a_postgres_store_takes_its_password_from_a_file() {
    let text = with("sqlite://a.db", "postgres://dqkd@db.example/dqkd?sslmode=verify-full");
    let text = text.replace("kek_file = \"a.kek\"", "kek_file = \"a.kek\"\npassword_file = \"pw\"");
    let StoreLocation::Postgres(url, file) = kme(&text, &[]).store.location else { panic!("{text}") };
    assert_eq!(file.as_deref(), Some(Path::new("/etc/dqkd/pw")));
    assert_eq!(url.with_password("a b@c"), "postgres://dqkd:a%20b%40c@db.example/dqkd?sslmode=verify-full");
    let error = parse_text(&text.replace("dqkd@db", "db"), &[]).unwrap_err();
    assert!(error.to_string().contains("needs a user, but store.url names none"), "{error}");
}

fn samples() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_sample_file_is_a_good_configuration() {
    let names: Vec<_> = samples().iter().map(|path| path.file_stem().unwrap().to_owned()).collect();
    assert_eq!(names, ["pool-1", "pool-2", "pool-3", "reference-kme", "site-a", "site-b"]);
    for file in samples() {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        match load(&file, []) {
            Ok(ConfigFile::Kme(config)) => {
                assert_eq!(config.id.as_str(), name.replace("reference-kme", "site-a"));
            }
            Ok(ConfigFile::Pool(config)) => assert_eq!(config.id.as_str(), name),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_sample_sites_and_pool_servers_find_each_other() {
    let load_kme = |name: &str| match load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name), []) {
        Ok(ConfigFile::Kme(config)) => *config,
        other => panic!("{other:?}"),
    };
    let (a, b) = (load_kme("config/site-a.toml"), load_kme("config/site-b.toml"));
    for (here, there) in [(&a, &b), (&b, &a)] {
        let [peer] = here.peers.as_slice() else { panic!("one peer") };
        assert_eq!(
            (&peer.id, peer.urls[0].as_str()),
            (&there.id, format!("https://{}", there.listen.peer).as_str())
        );
    }
    assert_eq!(a.saes, b.saes);
    assert_eq!(a.pool_servers, b.pool_servers);
    for server in &a.pool_servers {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/{}.toml", server.id));
        let Ok(ConfigFile::Pool(config)) = load(&file, []) else { panic!("{}", file.display()) };
        assert_eq!(server.url.as_str(), format!("https://{}", config.listen.pool));
    }
}

#[test]
fn the_reference_file_shows_every_option_with_its_default() {
    let text = include_str!("../../config/reference-kme.toml");
    let shown = kme(text, &[]);
    let optional = ["sae_admission", "sae_identity", "admin", "migrate", "crl_exempt"];
    // The same file without anything that has a default.
    let mut bare = String::new();
    let mut table = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        table = if line.starts_with('[') { line.split(']').next().unwrap_or_default() } else { table };
        let key = line.split(" =").next().unwrap_or_default();
        let defaulted = matches!(
            table,
            "[keys"
                | "[etsi014"
                | "[retrieval"
                | "[pools"
                | "[limits"
                | "[limits.sae"
                | "[limits.kme"
                | "[log"
                | "[danger"
        );
        if !defaulted && !optional.contains(&key) {
            bare.push_str(line);
            bare.push('\n');
        }
    }
    let bare = kme(&bare, &[]);
    assert_eq!(shown.sae_admission, bare.sae_admission);
    assert_eq!(shown.sae_identity, bare.sae_identity);
    assert_eq!(shown.listen, bare.listen);
    assert_eq!(shown.store, bare.store);
    assert_eq!(shown.keys, bare.keys);
    assert_eq!(shown.etsi014, bare.etsi014);
    assert_eq!(shown.retrieval, bare.retrieval);
    assert_eq!(shown.pools, bare.pools);
    assert_eq!(shown.limits, bare.limits);
    assert_eq!(shown.log, bare.log);
    assert_eq!(shown.tls, bare.tls);
    let document: toml::Table = text.parse().unwrap();
    let schema = raw::RawKmeFile::SCHEMA;
    for (table, fields) in schema.tables.iter().chain(schema.arrays) {
        let mut names = table.split('.');
        let outer = &document[names.next().unwrap()];
        let value = names.fold(outer, |value, name| &value[name]);
        let table_shown = value.as_array().map_or(value, |entries| &entries[0]).as_table().unwrap();
        for (field, _) in *fields {
            let only_one = ["kek_env", "kek_credential", "password_file", "sae_ca"].contains(field);
            let commented = text.contains(&format!("# {field} = "));
            assert!(table_shown.contains_key(*field) || only_one && commented, "{table}.{field}");
        }
    }
}

#[test]
fn the_guide_names_every_option() {
    let guide = include_str!("../../docs/configuration.md");
    for schema in [raw::RawKmeFile::SCHEMA, raw::RawPoolServerFile::SCHEMA] {
        for (table, fields) in schema.tables.iter().chain(schema.arrays) {
            assert!(guide.contains(&format!("[{table}]")), "{table}");
            for (field, _) in *fields {
                assert!(guide.contains(&format!("`{field}`")), "{table}.{field}");
            }
        }
    }
}

#[test]
fn check_reports_each_file_and_the_files_it_references() {
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("pool.toml");
    std::fs::write(&good, MINIMAL_POOL).unwrap();
    for name in ["ca.pem", "p.pem"] {
        std::fs::write(directory.path().join(name), "").unwrap();
    }
    let absent = directory.path().join("absent.toml");
    let results = check_with(&[&good, &absent], &[]);
    let told = results[0].as_ref().unwrap_err().to_string();
    let key = directory.path().join("p.key");
    let expected = format!("{}:7:7: tls.key: {} cannot be read", good.display(), key.display());
    assert!(told.starts_with(&expected), "{told}");
    assert!(!told.contains("tls.cert"), "{told}");
    assert!(matches!(&results[1], Err(ConfigError::Read { path, .. }) if *path == absent));

    std::fs::create_dir(&key).unwrap();
    assert!(check_with(&[&good], &[])[0].as_ref().unwrap_err().to_string().contains("is a directory"));
    std::fs::remove_dir(&key).unwrap();
    std::fs::write(&key, "").unwrap();
    let set = |bits: u32| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(bits)).unwrap();
    for bits in [0o644, 0o604, 0o660] {
        set(bits);
        let told = check_with(&[&good], &[])[0].as_ref().unwrap_err().to_string();
        assert!(told.contains(&format!("chmod 600 {}", key.display())), "{told}");
    }
    set(0o600);
    let summary = check_with(&[&good], &[]).remove(0).unwrap().to_string();
    assert_eq!(summary, format!("{}: ok: pool server pool-1 at 0.0.0.0:9643", good.display()));
}
