//! HAProxy in front of the replicas of one site: TCP, so that TLS ends in the daemons.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use testkit::eventually;

/// Where one replica listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listeners {
    pub(crate) sae: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A running HAProxy, which ends when this is dropped.
pub(crate) struct Balancer {
    process: Child,
    statistics: PathBuf,
}

/// Prefers replicas that are ready. If none is, connections still go to one that listens: it hands out ready
/// keys, or refuses and says when to try again. Sessions stay when a replica becomes unready, so that a
/// graceful stop finishes them; those of a dead process end on their own.
const HEAD: &str = "\
defaults
    mode tcp
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout check 3s
    retries 3
    option redispatch 1
    balance roundrobin
    option allbackups
    option httpchk GET /readyz
    default-server inter 250ms fall 2 rise 1
";

impl Balancer {
    /// `sae` and `peer` are the addresses at which others reach the site.
    pub(crate) fn start(
        folder: &Path,
        name: &str,
        sae: SocketAddr,
        peer: SocketAddr,
        replicas: &[Listeners],
    ) -> Self {
        let statistics = folder.join(format!("{name}.sock"));
        let mut text = format!("global\n    stats socket {} level admin\n\n{HEAD}", statistics.display());
        for (listener, at) in [("sae", sae), ("peer", peer)] {
            write!(text, "\nlisten {listener}\n    bind {at}\n").unwrap();
            for (index, replica) in replicas.iter().enumerate() {
                let (to, admin) = (if listener == "sae" { replica.sae } else { replica.peer }, replica.admin);
                writeln!(
                    text,
                    "    server replica-{index} {to} check addr {} port {}",
                    admin.ip(),
                    admin.port()
                )
                .unwrap();
                writeln!(text, "    server unready-{index} {to} backup").unwrap();
            }
        }
        let config = folder.join(format!("{name}.haproxy"));
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(folder.join(format!("{name}-haproxy.log"))).unwrap();
        let mut haproxy = Command::new("haproxy");
        haproxy.arg("-db").arg("-f").arg(&config).stdin(Stdio::null());
        haproxy.stdout(log.try_clone().unwrap()).stderr(log);
        let process = haproxy.spawn().expect("Debian's haproxy is installed: tests/run.sh does that");
        eventually("HAProxy listens", || UnixStream::connect(&statistics).is_ok());
        Self { process, statistics }
    }

    /// Source ports of the open connections of applications to one replica.
    pub(crate) fn clients_of(&self, replica: usize) -> Vec<u16> {
        let mut socket = UnixStream::connect(&self.statistics).unwrap();
        socket.write_all(b"show sess\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let servers = [format!(" srv=replica-{replica} "), format!(" srv=unready-{replica} ")];
        let is_meant =
            |line: &&str| line.contains(" fe=sae ") && servers.iter().any(|server| line.contains(server));
        let port = |line: &str| line.split(" src=127.0.0.1:").nth(1)?.split(' ').next()?.parse().ok();
        text.lines().filter(is_meant).filter_map(port).collect()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
