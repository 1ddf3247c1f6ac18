//! Two or more sites and three pool servers as processes, with a proxy on every link between them. A site is
//! one daemon, or several replicas behind HAProxy, with one database.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use testkit::{Daemon, Network, Ports};
use tokio::sync::Mutex;

use crate::balancer::{Balancer, Listeners};
use crate::database::Database;
use crate::disk::Disk;
use crate::proxy::{Link, Mode};
use crate::schedule::{Fault, Targets};

/// The first port of the proxies, after those of the demo: three for each site, two for each pool server.
const PROXY_PORTS_FROM: u16 = 15;
const POOL_SERVERS: usize = 3;
/// Lines of the log of a daemon that ended by itself.
const LOG_LINES: usize = 20;

/// The number of sites, and what each consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) sites: usize,
    /// Daemons of each site.
    pub(crate) replicas: usize,
    pub(crate) is_postgres: bool,
}

/// One process, or its place while it is dead.
pub(crate) struct Slot {
    pub(crate) name: String,
    command: &'static str,
    config: PathBuf,
    listeners: usize,
    /// Held while a fault acts on the process.
    pub(crate) daemon: Mutex<Option<Daemon>>,
}

impl Slot {
    fn new(name: String, command: &'static str, config: &Path, listeners: usize) -> Self {
        Self { name, command, config: config.to_owned(), listeners, daemon: Mutex::new(None) }
    }

    /// Starts the process. The error is its log.
    pub(crate) fn spawn(&self) -> Result<Daemon, String> {
        Daemon::try_start(self.command, &self.config, self.listeners)
    }
}

/// Fields are dropped in this order: processes, databases with their disks, and last the folder with
/// everything.
pub(crate) struct Cluster {
    pub(crate) shape: Shape,
    /// First the replicas, site by site, then the pool servers.
    pub(crate) slots: Vec<Slot>,
    /// One for each site; empty if sites have one daemon each.
    pub(crate) balancers: Vec<Balancer>,
    /// One for each site. Without a disk if this user may not mount.
    pub(crate) databases: Vec<Database>,
    pub(crate) no_disks_because: Option<String>,
    pub(crate) links: Vec<Link>,
    pub(crate) network: Network,
    _ports: Ports,
}

impl Cluster {
    /// Makes files, disks and proxies, and starts all processes. Needs a tokio runtime. `keys` are lines for
    /// `[keys]`.
    pub(crate) fn start(shape: Shape, keys: &str) -> Self {
        let network = Network::generate(shape.sites);
        // The user of a database server must be able to enter.
        std::fs::set_permissions(network.dir(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let (databases, no_disks_because) = databases(&network, shape);
        let ports = Ports::claim();
        let replicas = replicas(shape, ports.base);
        let mut links = reroute(&network, &replicas);
        for (site, database) in databases.iter().enumerate() {
            // Even sites connect by TCP with TLS, over a link that can fail; odd ones by the socket.
            let server = database.address().filter(|_| site % 2 == 0);
            let at = server
                .map(|_| SocketAddr::from(([127, 0, 0, 1], ports.base + Ports::EACH - 2 - as_u16(site))));
            if let (Some(server), Some(at)) = (server, at) {
                links.push(Link::start(format!("site {site} to its database"), at, server));
            }
            let file = network.database(site).file_name().unwrap().to_string_lossy().into_owned();
            network.configure(site, &format!("sqlite://{file}"), &database.url(at));
            network.configure(site, "[store]", &format!("[keys]\n{keys}\n\n[store]"));
        }
        let mut slots = Vec::new();
        let mut balancers = Vec::new();
        for (site, replicas) in replicas.iter().enumerate() {
            let config = &network.site(site).config;
            if replicas.is_empty() {
                slots.push(Slot::new(format!("site {site}"), "serve", config, 3));
                continue;
            }
            let (sae, peer) = (address(&network.site(site).sae_url), address(&network.site(site).peer_url));
            balancers.push(Balancer::start(network.dir(), &format!("site-{site}"), sae, peer, replicas));
            for (index, listeners) in replicas.iter().enumerate() {
                let config = replica_config(&network, site, index, *listeners);
                slots.push(Slot::new(format!("site {site} replica {index}"), "serve", &config, 3));
            }
        }
        let pools = (0..POOL_SERVERS).map(|index| network.pool(index));
        slots.extend(pools.map(|pool| Slot::new(pool.id.clone(), "pool", &pool.config, 2)));
        for slot in slots.iter().rev() {
            *slot.daemon.try_lock().unwrap() = Some(slot.spawn().unwrap());
        }
        Self { shape, slots, balancers, databases, no_disks_because, links, network, _ports: ports }
    }

    pub(crate) fn targets(&self) -> Targets {
        Targets {
            sites: self.shape.sites,
            replicas: self.shape.sites * self.shape.replicas,
            slots: self.slots.len(),
            links: self.links.len(),
            disks: self.databases.iter().filter(|database| database.disk.is_some()).count(),
            is_postgres: self.shape.is_postgres,
        }
    }

    /// The fault, as a person would call it.
    pub(crate) fn name_of(&self, fault: Fault) -> String {
        match fault {
            Fault::Kill { slot } => format!("kill {}", self.slots[slot].name),
            Fault::Pause { slot } => format!("pause {}", self.slots[slot].name),
            Fault::Terminate { slot } => format!("terminate {}", self.slots[slot].name),
            Fault::Link { link, mode } => format!("{mode:?} from {}", self.links[link].name),
            _ => format!("{fault:?}"),
        }
    }

    /// Ends every fault of links and disks. Other faults end by themselves.
    pub(crate) fn heal(&self) {
        for link in &self.links {
            link.set(Mode::Pass);
        }
        self.databases.iter().for_each(Database::heal);
    }

    /// Daemons that ended by themselves: name, status and the end of the log. Reports each once.
    pub(crate) async fn fallen(&self) -> Vec<String> {
        let mut fallen = Vec::new();
        for slot in &self.slots {
            let mut place = slot.daemon.lock().await;
            let Some(status) = place.as_mut().and_then(Daemon::ended) else { continue };
            let log = place.take().map(|daemon| daemon.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            fallen.push(format!("{} ended by itself, {status}:\n{tail}", slot.name));
        }
        fallen
    }

    /// Copies all logs and databases to a folder that stays.
    pub(crate) fn keep_logs(&self, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        let folder = self.slots[0].config.parent().unwrap();
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for log in files.filter(|path| path.extension().is_some_and(|ending| ending == "log")) {
            std::fs::copy(&log, to.join(log.file_name().unwrap())).unwrap();
        }
        for (site, database) in self.databases.iter().enumerate() {
            database.keep(to, &format!("database-{site}"));
        }
    }

    /// Names and resident memory of all processes.
    pub(crate) async fn memory_kib(&self) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        for slot in &self.slots {
            let daemon = slot.daemon.lock().await;
            all.extend(daemon.as_ref().map(|daemon| (slot.name.clone(), daemon.memory_kib())));
        }
        all
    }
}

/// The databases of all sites and, if they have no file systems of their own, why.
fn databases(network: &Network, shape: Shape) -> (Vec<Database>, Option<String>) {
    let mount = |site: usize| {
        let at = network.dir().join(format!("disk-{site}"));
        Disk::mount(&at.with_extension("ext4"), &at)
    };
    let mut no_disks_because = None;
    let mut disks: Vec<Option<Disk>> = Vec::new();
    for site in 0..shape.sites {
        disks.push(mount(site).map_err(|reason| no_disks_because = Some(reason)).ok());
    }
    if no_disks_because.is_some() {
        disks.fill_with(|| None);
    }
    let database = |(site, disk): (usize, Option<Disk>)| {
        if shape.is_postgres {
            let folder = network.dir().join(format!("database-{site}"));
            Database::postgres(&folder, disk)
        } else {
            Database::sqlite(network.database(site), disk)
        }
    };
    (disks.into_iter().enumerate().map(database).collect(), no_disks_because)
}

/// Where the replicas of each site listen; empty if a site is one daemon.
fn replicas(shape: Shape, base: u16) -> Vec<Vec<Listeners>> {
    let port = |site, replica, listener| base + 3 * as_u16(site * shape.replicas + replica) + listener;
    let at = |site, replica, listener| SocketAddr::from(([127, 0, 0, 1], port(site, replica, listener)));
    let listeners = |site, replica| Listeners {
        sae: at(site, replica, 0),
        peer: at(site, replica, 1),
        admin: at(site, replica, 2),
    };
    let count = if shape.replicas == 1 { 0 } else { shape.replicas };
    let used = 3 * as_u16(shape.sites * count) + as_u16(shape.sites);
    assert!(used < Ports::EACH, "no ports for so many replicas");
    (0..shape.sites).map(|site| (0..count).map(|replica| listeners(site, replica)).collect()).collect()
}

/// The site's configuration with the replica's own listeners, in the same folder, so that its paths stay
/// valid.
fn replica_config(network: &Network, site: usize, index: usize, listeners: Listeners) -> PathBuf {
    let of_site = network.site(site);
    let text = std::fs::read_to_string(&of_site.config).unwrap();
    let admin = of_site.admin_url.trim_start_matches("http://").parse().unwrap();
    let moves = [
        (address(&of_site.sae_url), listeners.sae),
        (address(&of_site.peer_url), listeners.peer),
        (admin, listeners.admin),
    ];
    let text = moves.iter().fold(text, |text: String, (from, to)| {
        text.replacen(&format!("= \"{from}\""), &format!("= \"{to}\""), 1)
    });
    // The load balancer learns of a stop before it begins.
    let text = text + "\n[limits]\ndrain_delay = \"1s\"\n";
    let config = of_site.config.with_file_name(format!("site-{site}-replica-{index}.toml"));
    std::fs::write(&config, text).unwrap();
    config
}

/// Puts a proxy in front of every server that a site calls. A site of several replicas is called through its
/// load balancer, except that odd sites call every replica of site 0.
fn reroute(network: &Network, replicas: &[Vec<Listeners>]) -> Vec<Link> {
    let first = address(&network.site(0).sae_url).port();
    let (mut port, end) = (first + PROXY_PORTS_FROM, first + Ports::EACH - 1);
    let mut links = Vec::new();
    for from in 0..replicas.len() {
        let mut link = |name: String, to: SocketAddr| {
            assert!(port < end, "no ports for so many links");
            let at = SocketAddr::from(([127, 0, 0, 1], port));
            port += 1;
            links.push(Link::start(format!("site {from} to {name}"), at, to));
            format!("\"https://{at}\"")
        };
        for to in (0..replicas.len()).filter(|to| *to != from) {
            let url = &network.site(to).peer_url;
            let urls = if from % 2 == 0 || to != 0 || replicas[to].is_empty() {
                link(format!("site {to}"), address(url))
            } else {
                let each = replicas[to].iter().enumerate();
                let each =
                    each.map(|(index, replica)| link(format!("site {to} replica {index}"), replica.peer));
                format!("[{}]", each.collect::<Vec<_>>().join(", "))
            };
            network.configure(from, &format!("\"{url}\""), &urls);
        }
        for pool in (0..POOL_SERVERS).map(|index| network.pool(index)) {
            let at = link(pool.id.clone(), address(&pool.url));
            network.configure(from, &format!("\"{}\"", pool.url), &at);
        }
    }
    links
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("https://").parse().unwrap()
}

fn as_u16(number: usize) -> u16 {
    number.try_into().unwrap()
}
