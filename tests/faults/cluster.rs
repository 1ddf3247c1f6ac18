//! Two or more sites and three pool servers as processes, a proxy on every link between them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use crate::disk::Disk;
use crate::proxy::{Link, Mode};
use crate::schedule::Fault;
use crate::support::{Daemon, Network};

/// The first port of the proxies, after those of the demo: three for each site, two for each pool server.
const PROXY_PORTS_FROM: u16 = 15;
const POOL_SERVERS: usize = 3;
/// Lines of the log of a daemon that ended by itself.
const LOG_LINES: usize = 20;

/// One process, or its place while it is dead.
pub(crate) struct Slot {
    pub(crate) name: String,
    command: &'static str,
    config: PathBuf,
    listeners: usize,
    /// Held for as long as a fault works on the process.
    pub(crate) daemon: Mutex<Option<Daemon>>,
}

impl Slot {
    /// Starts the process; what it logged when it did not come up.
    pub(crate) fn spawn(&self) -> Result<Daemon, String> {
        Daemon::try_start(self.command, &self.config, self.listeners)
    }
}

/// Fields go in this order when it ends: processes, their disks, and last the folder with everything.
pub(crate) struct Cluster {
    /// Sites first, then pool servers.
    pub(crate) slots: Vec<Slot>,
    /// One for each site; empty where this user may not mount.
    pub(crate) disks: Vec<Disk>,
    pub(crate) no_disks_because: Option<String>,
    pub(crate) links: Vec<Link>,
    pub(crate) network: Network,
}

impl Cluster {
    /// Files, disks and proxies; processes run. In a runtime. `keys` are lines for `[keys]`.
    pub(crate) fn start(sites: usize, keys: &str) -> Self {
        let network = Network::generate(sites);
        let mut disks = Vec::new();
        let mut no_disks_because = None;
        for site in 0..sites {
            let at = network.dir().join(format!("disk-{site}"));
            match Disk::mount(&at.with_extension("ext4"), &at) {
                Ok(disk) => disks.push(disk),
                Err(reason) => no_disks_because = Some(reason),
            }
        }
        if no_disks_because.is_some() {
            disks.clear();
        }
        let links = reroute(&network, sites);
        for site in 0..sites {
            if let Some(disk) = disks.get(site) {
                let file = network.database(site).file_name().unwrap().to_string_lossy().into_owned();
                let url = format!("sqlite://{}", disk.database().display());
                network.configure(site, &format!("sqlite://{file}"), &url);
            }
            network.configure(site, "[store]", &format!("[keys]\n{keys}\n\n[store]"));
        }
        let slot = |name: String, command, config: &PathBuf, listeners| Slot {
            name,
            command,
            config: config.clone(),
            listeners,
            daemon: Mutex::new(None),
        };
        let mut slots: Vec<Slot> =
            (0..sites).map(|i| slot(format!("site {i}"), "serve", &network.site(i).config, 3)).collect();
        slots.extend(
            (0..POOL_SERVERS).map(|i| slot(network.pool(i).id.clone(), "pool", &network.pool(i).config, 2)),
        );
        for slot in slots.iter().rev() {
            *slot.daemon.try_lock().unwrap() = Some(slot.spawn().unwrap());
        }
        Self { slots, disks, no_disks_because, links, network }
    }

    pub(crate) fn site_count(&self) -> usize {
        self.slots.len() - POOL_SERVERS
    }

    /// For people.
    pub(crate) fn name_of(&self, fault: Fault) -> String {
        match fault {
            Fault::Kill { slot } => format!("kill {}", self.slots[slot].name),
            Fault::Pause { slot } => format!("pause {}", self.slots[slot].name),
            Fault::Terminate { slot } => format!("terminate {}", self.slots[slot].name),
            Fault::Link { link, mode } => format!("{mode:?} from {}", self.links[link].name),
            Fault::DiskFull { .. } | Fault::ReadOnly { .. } | Fault::Locked { .. } => format!("{fault:?}"),
        }
    }

    /// Where a site's database is.
    pub(crate) fn database(&self, site: usize) -> PathBuf {
        self.disks.get(site).map_or_else(|| self.network.database(site), Disk::database)
    }

    /// Ends every fault of links and disks. Faults of processes end by themselves.
    pub(crate) fn heal(&self) {
        for link in &self.links {
            link.set(Mode::Pass);
        }
        for disk in &self.disks {
            disk.free();
            disk.set_read_only(false).unwrap();
        }
    }

    /// Daemons that ended by themselves: name, status and the end of the log. Each is told once.
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

    /// Puts all logs where they stay.
    pub(crate) fn keep_logs(&self, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        let folder = self.slots[0].config.parent().unwrap();
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for log in files.filter(|path| path.extension().is_some_and(|ending| ending == "log")) {
            std::fs::copy(&log, to.join(log.file_name().unwrap())).unwrap();
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

/// Puts a proxy before every server that a site calls.
fn reroute(network: &Network, sites: usize) -> Vec<Link> {
    let address = |url: &str| -> SocketAddr { url.trim_start_matches("https://").parse().unwrap() };
    let mut port = address(&network.site(0).sae_url).port() + PROXY_PORTS_FROM;
    let mut links = Vec::new();
    for from in 0..sites {
        let peers = (0..sites).filter(|to| *to != from);
        let peers = peers.map(|to| (format!("site {to}"), network.site(to).peer_url.clone()));
        let pools = (0..POOL_SERVERS).map(|to| (network.pool(to).id.clone(), network.pool(to).url.clone()));
        for (name, url) in peers.chain(pools) {
            let at = SocketAddr::from(([127, 0, 0, 1], port));
            port += 1;
            network.configure(from, &format!("\"{url}\""), &format!("\"https://{at}\""));
            links.push(Link::start(format!("site {from} to {name}"), at, address(&url)));
        }
    }
    links
}
