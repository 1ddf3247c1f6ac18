//! A network of sites and pool servers: files from `dqkd demo --generate-only`, each daemon a process.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::curl::{Curl, CurlAnswer};
use super::manifest::{Manifest, PoolServer, Sae, Site};
use super::process::{Daemon, eventually, run_to_end};

/// Ports of one test. Outside the system's ephemeral range, so that a daemon finds its ports free again after
/// a restart. The last one is held, so that no other test takes the same ports.
pub struct Ports {
    pub base: u16,
    _held: TcpListener,
}

impl Ports {
    pub const EACH: u16 = 32;

    pub fn claim() -> Self {
        for base in (61_000..65_000).step_by(usize::from(Self::EACH)) {
            if let Ok(held) = TcpListener::bind(("127.0.0.1", base + Self::EACH - 1)) {
                return Self { base, _held: held };
            }
        }
        panic!("all ports of the tests are taken");
    }
}

/// A network whose daemons may run or not. Everything is removed when this is dropped, except the files of a
/// failed test.
pub struct Network {
    manifest: Manifest,
    pub sites: Vec<Option<Daemon>>,
    pub pools: Vec<Option<Daemon>>,
    dir: TempDir,
    /// Dropped last: another test may have the ports only after the daemons have ended.
    ports: Ports,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.dir.disable_cleanup(std::thread::panicking());
    }
}

impl Network {
    /// Writes the files, starts nothing.
    pub fn generate(sites: usize) -> Self {
        Self::generate_with(sites, 3)
    }

    /// The same with another number of pool servers.
    pub fn generate_with(sites: usize, pool_servers: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let demo = dir.path().join("demo");
        let sites_arg = sites.to_string();
        let demo_arg = demo.display().to_string();
        let ports = Ports::claim();
        let base = ports.base.to_string();
        let pools_arg = pool_servers.to_string();
        let args =
            ["--sites", &sites_arg, "--pool-servers", &pools_arg, "--base-port", &base, "--dir", &demo_arg];
        run_to_end(&[&["demo", "--generate-only"][..], &args].concat());
        let text = std::fs::read_to_string(demo.join("demo.json")).unwrap();
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        let none = |count: usize| (0..count).map(|_| None).collect();
        let (site_slots, pool_slots) = (none(manifest.sites.len()), none(manifest.pool_servers.len()));
        Self { manifest, sites: site_slots, pools: pool_slots, dir, ports }
    }

    /// Adds a daemon to a site, before anything starts: same certificate and store, own listeners. Returns
    /// its index among the sites.
    pub fn add_replica(&mut self, of: usize) -> usize {
        let names = self.manifest.sites.iter().map(|site| &site.id).collect::<HashSet<_>>().len();
        let earlier = self.manifest.sites.len() - names;
        let first = 3 * names + 2 * self.pools.len() + 3 * earlier;
        assert!(first + 3 <= usize::from(Ports::EACH) - 10, "too few ports");
        let first = self.ports.base + u16::try_from(first).unwrap();
        let mut replica = self.manifest.sites[of].clone();
        let mut text = std::fs::read_to_string(&replica.config).unwrap();
        for (url, port) in
            [&mut replica.sae_url, &mut replica.peer_url, &mut replica.admin_url].into_iter().zip(first..)
        {
            let (scheme, old) = url.split_once("://").unwrap();
            let new = format!("127.0.0.1:{port}");
            assert!(text.contains(&format!("\"{old}\"")), "{old} is not in {text}");
            text = text.replacen(&format!("\"{old}\""), &format!("\"{new}\""), 1);
            *url = format!("{scheme}://{new}");
        }
        replica.config = self.dir.path().join(format!("demo/{}-replica-{}.toml", replica.id, earlier + 1));
        replica.saes.clear();
        std::fs::write(&replica.config, text).unwrap();
        self.manifest.sites.push(replica);
        self.sites.push(None);
        self.manifest.sites.len() - 1
    }

    /// Configures every daemon with all URLs of the replicas of the other sites.
    pub fn list_replicas(&self) {
        for (index, site) in self.manifest.sites.iter().enumerate() {
            for other in self.manifest.sites.iter().filter(|other| other.id != site.id) {
                let all = self.manifest.sites.iter().filter(|replica| replica.id == other.id);
                let urls: Vec<String> = all.map(|replica| format!("{:?}", replica.peer_url)).collect();
                let first = format!("url = {}", urls[0]);
                if other.peer_url == urls[0].trim_matches('"') {
                    self.configure(index, &first, &format!("url = [{}]", urls.join(", ")));
                }
            }
        }
    }

    /// Starts all daemons.
    pub fn start(sites: usize) -> Self {
        let mut network = Self::generate(sites);
        network.start_pools(3);
        network.start_sites();
        network
    }

    /// Starts the first `count` pool servers.
    pub fn start_pools(&mut self, count: usize) {
        for index in 0..count {
            self.start_pool(index);
        }
    }

    pub fn start_pool(&mut self, index: usize) {
        let config = self.manifest.pool_servers[index].config.clone();
        self.pools[index] = Some(Daemon::start("pool", &config, 2));
    }

    pub fn start_sites(&mut self) {
        for index in 0..self.sites.len() {
            self.start_site(index);
        }
        // Sites that started first could not reach the others at first.
        for index in 0..self.sites.len() {
            let url = format!("{}/readyz", self.site(index).admin_url);
            eventually("all peers answer", || {
                let answer = Curl::nobody(&self.ca()).get(&url);
                answer.status == 200 && !answer.body.contains("does not answer")
            });
        }
    }

    pub fn start_site(&mut self, index: usize) {
        let config = self.manifest.sites[index].config.clone();
        self.sites[index] = Some(Daemon::start("serve", &config, 3));
    }

    /// Replaces text in a site's configuration before it starts: `from` must be in it.
    pub fn configure(&self, index: usize, from: &str, to: &str) {
        let config = &self.manifest.sites[index].config;
        let text = std::fs::read_to_string(config).unwrap();
        assert!(text.contains(from), "{from:?} is not in {text}");
        std::fs::write(config, text.replacen(from, to, 1)).unwrap();
    }

    pub fn daemon(&self, index: usize) -> &Daemon {
        self.sites[index].as_ref().unwrap()
    }

    pub fn kill_site(&mut self, index: usize) {
        self.sites[index].take().unwrap().kill();
    }

    pub fn kill_pool(&mut self, index: usize) {
        self.pools[index].take().unwrap().kill();
    }

    /// A port for the test itself, which no daemon has; `index` from 0 to 7.
    pub fn spare_port(&self, index: u16) -> u16 {
        assert!(index < 8);
        self.ports.base + Ports::EACH - 10 + index
    }

    /// The folder of the whole network.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file that lists everything.
    pub fn manifest(&self) -> PathBuf {
        self.dir.path().join("demo/demo.json")
    }

    /// The folder of the authority.
    pub fn pki(&self) -> PathBuf {
        self.dir.path().join("demo/pki")
    }

    pub fn ca(&self) -> PathBuf {
        self.manifest.ca.clone()
    }

    pub fn site(&self, index: usize) -> &Site {
        &self.manifest.sites[index]
    }

    pub fn pool(&self, index: usize) -> &PoolServer {
        &self.manifest.pool_servers[index]
    }

    /// An SAE by name, with the site it lives at.
    pub fn sae(&self, id: &str) -> (&Site, &Sae) {
        let all = self.manifest.sites.iter().flat_map(|site| site.saes.iter().map(move |sae| (site, sae)));
        all.into_iter().find(|(_, sae)| sae.id == id).unwrap()
    }

    /// An SAE's curl, with its `.p12` bundle.
    pub fn curl(&self, sae: &str) -> Curl {
        Curl::p12(&self.ca(), self.sae(sae).1)
    }

    fn url(&self, sae: &str, path_id: &str, call: &str) -> String {
        format!("{}/api/v1/keys/{path_id}/{call}", self.sae(sae).0.sae_url)
    }

    /// GET status.
    pub fn status(&self, sae: &str, slave: &str) -> Value {
        let answer = self.curl(sae).get(&self.url(sae, slave, "status"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// The status of GET status; 0 when there was no answer.
    pub fn status_code(&self, sae: &str, slave: &str) -> u16 {
        self.curl(sae).get(&self.url(sae, slave, "status")).status
    }

    /// GET `enc_keys` with `query`, for example `?number=2`.
    pub fn enc(&self, sae: &str, slave: &str, query: &str) -> CurlAnswer {
        self.curl(sae).get(&format!("{}{query}", self.url(sae, slave, "enc_keys")))
    }

    /// POST `enc_keys`.
    pub fn enc_post(&self, sae: &str, slave: &str, body: &Value) -> CurlAnswer {
        self.curl(sae).post(&self.url(sae, slave, "enc_keys"), &body.to_string())
    }

    /// POST `dec_keys`.
    pub fn dec(&self, sae: &str, master: &str, key_ids: &[&str]) -> CurlAnswer {
        let ids: Vec<Value> = key_ids.iter().map(|id| json!({ "key_ID": id })).collect();
        self.curl(sae).post(&self.url(sae, master, "dec_keys"), &json!({ "key_IDs": ids }).to_string())
    }

    /// GET `dec_keys`.
    pub fn dec_get(&self, sae: &str, master: &str, key_id: &str) -> CurlAnswer {
        self.curl(sae).get(&format!("{}?key_ID={key_id}", self.url(sae, master, "dec_keys")))
    }

    /// The state of one part in `/readyz`.
    pub fn part(&self, site: usize, name: &str) -> String {
        self.part_of(site, name)["condition"].as_str().unwrap().to_owned()
    }

    /// What `/readyz` says of one part; empty while it is well.
    pub fn part_message(&self, site: usize, name: &str) -> String {
        self.part_of(site, name)["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The metrics of a site.
    pub fn metrics(&self, site: usize) -> String {
        Curl::nobody(&self.ca()).get(&format!("{}/metrics", self.site(site).admin_url)).body
    }

    fn part_of(&self, site: usize, name: &str) -> Value {
        let answer = Curl::nobody(&self.ca()).get(&format!("{}/readyz", self.site(site).admin_url));
        let parts = answer.json()["parts"].as_array().unwrap().clone();
        let part = parts.iter().find(|part| part["name"] == name).unwrap_or_else(|| panic!("{answer:?}"));
        part.clone()
    }

    /// A site's database file.
    pub fn database(&self, site: usize) -> PathBuf {
        self.site(site).config.with_extension("db")
    }
}
