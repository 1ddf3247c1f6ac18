//! Processor time of the client and of servers on this machine, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use http::Uri;
use serde::Serialize;

/// The column of a socket's inode in `/proc/net/tcp`, and the state of one that listens.
const INODE_COLUMN: usize = 9;
const LISTENING: &str = "0A";
/// Columns of user and system time in `/proc/PID/stat`, counted after the name.
const USER_COLUMN: usize = 11;
const SYSTEM_COLUMN: usize = 12;

/// Servers that run on this machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes {
    /// Names by process: one may be several servers.
    names: BTreeMap<u32, Vec<String>>,
}

/// Processor time in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Used {
    pub(super) client: f64,
    pub(super) servers: Vec<ServerUse>,
    /// Of the whole machine, including client and servers.
    pub(super) machine: f64,
    /// Taken by the host of this virtual machine.
    pub(super) stolen: f64,
}

/// One server process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerUse {
    /// Which servers it is.
    pub names: Vec<String>,
    /// Its process ID.
    pub pid: u32,
    /// Seconds of the processor that it used.
    pub cpu_s: f64,
}

impl Processes {
    /// The processes that listen at the ports of `servers` (name, URL), as far as their URLs name this
    /// machine.
    pub(super) fn find(servers: &[(String, String)]) -> Self {
        let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let inodes: Vec<(String, String)> = servers
            .iter()
            .filter_map(|(name, url)| Some((name.clone(), listening_socket(local_port(url)?)?)))
            .collect();
        for (pid, socket) in open_sockets() {
            for (name, _) in inodes.iter().filter(|(_, inode)| *inode == socket) {
                let of_process = names.entry(pid).or_default();
                if !of_process.contains(name) {
                    of_process.push(name.clone());
                }
            }
        }
        Self { names }
    }

    /// What was used since each process started.
    pub(super) fn used(&self) -> Used {
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        #[expect(clippy::cast_precision_loss, reason = "counts of ticks are far below 2^52")]
        let seconds = |count: u64| count as f64 / ticks as f64;
        let of = |pid: &str| process_ticks(pid).map(seconds);
        let servers = self.names.iter().filter_map(|(pid, names)| {
            Some(ServerUse { names: names.clone(), pid: *pid, cpu_s: of(&pid.to_string())? })
        });
        let (busy, stolen) = machine_ticks().unwrap_or_default();
        Used {
            client: of("self").unwrap_or_default(),
            servers: servers.collect(),
            machine: seconds(busy),
            stolen: seconds(stolen),
        }
    }
}

impl Used {
    /// The difference to what was used `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let servers = self.servers.iter().filter_map(|now| {
            let then = before.servers.iter().find(|then| then.pid == now.pid)?;
            Some(ServerUse { cpu_s: now.cpu_s - then.cpu_s, ..now.clone() })
        });
        Self {
            client: self.client - before.client,
            servers: servers.collect(),
            machine: self.machine - before.machine,
            stolen: self.stolen - before.stolen,
        }
    }
}

/// The port of a URL that names this machine.
fn local_port(url: &str) -> Option<u16> {
    let uri: Uri = url.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_local.then(|| uri.port_u16().unwrap_or(443))
}

/// The inode of the socket that listens at `port`.
fn listening_socket(port: u16) -> Option<String> {
    let ending = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_it = columns.get(1)?.ends_with(&ending) && *columns.get(3)? == LISTENING;
            is_it.then(|| columns.get(INODE_COLUMN).map(|inode| (*inode).to_owned()))?
        })
    })
}

/// Every socket's inode with the process that holds it.
fn open_sockets() -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for process in entries(Path::new("/proc")) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        for file in entries(&process.join("fd")) {
            let Ok(link) = fs::read_link(file) else { continue };
            let inode = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            if let Some(inode) = inode {
                found.push((pid, inode.to_owned()));
            }
        }
    }
    found
}

fn entries(dir: &Path) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// User and system time of a process in ticks.
fn process_ticks(pid: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything.
    let columns: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let column = |index: usize| columns.get(index)?.parse::<u64>().ok();
    Some(column(USER_COLUMN)? + column(SYSTEM_COLUMN)?)
}

/// Ticks in which the machine's processors worked, and that were stolen from it.
fn machine_ticks() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let all: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let [user, nice, system, _, _, irq, softirq, steal, ..] = all.as_slice() else { return None };
    Some((user + nice + system + irq + softirq, *steal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_listens_at_a_local_port_is_found_with_its_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let servers = [
            ("site-a".to_owned(), format!("https://127.0.0.1:{port}")),
            ("again".to_owned(), format!("https://localhost:{port}/x")),
            ("elsewhere".to_owned(), format!("https://192.0.2.1:{port}")),
            ("not there".to_owned(), "https://127.0.0.1:1".to_owned()),
        ];
        let processes = Processes::find(&servers);
        let own = std::process::id();
        assert_eq!(processes.names[&own], ["site-a", "again"]);
        assert_eq!(processes.names.len(), 1);
        let before = processes.used();
        let mut sum = 0_u64;
        let used = loop {
            sum = std::hint::black_box(sum.wrapping_add(1));
            if sum.is_multiple_of(1 << 20) {
                let used = processes.used().since(&before);
                if used.client >= 0.05 {
                    break used;
                }
            }
        };
        // Both are counted in ticks of a hundredth of a second, which end at different moments.
        assert!(used.machine > used.client - 0.02, "{used:?}");
        assert!(used.servers[0].cpu_s > used.client - 0.03, "{used:?}");
    }
}
