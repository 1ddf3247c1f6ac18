//! Where attacks take place: the processes, the certificates of attackers, the addresses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::{Network, RawClient, dqkd, output_of, run_to_end};

/// Two sites and some pool servers. Site 0 is site-a with alice and dave, site 1 is site-b with bob and carol.
pub(crate) struct Field {
    pub(crate) network: Network,
}

impl Field {
    /// Writes the files, starts nothing.
    pub(crate) fn generate(pool_servers: usize) -> Self {
        Self { network: Network::generate_with(2, pool_servers) }
    }

    /// Everything runs, with three pool servers.
    pub(crate) fn start() -> Self {
        let mut field = Self::generate(3);
        field.start_all();
        field
    }

    pub(crate) fn start_all(&mut self) {
        self.network.start_pools(self.network.pools.len());
        self.network.start_sites();
    }

    /// A client with the certificate of this name, and the right to be hostile.
    pub(crate) fn client(&self, name: &str) -> RawClient {
        let pki = self.network.pki();
        client_of(&self.network.ca(), &pki, name)
    }

    /// Makes a certificate of the network's own authority.
    pub(crate) fn issue(&self, role: &str, id: &str) -> RawClient {
        self.pki(&["issue", role, id]);
        self.client(id)
    }

    /// A certificate that expires this many seconds from now. Needs faketime.
    pub(crate) fn issue_for(&self, seconds: u32, role: &str, id: &str) -> RawClient {
        let ago = format!("-{}s", 86_400 - seconds);
        let pki = self.network.pki();
        let mut command = Command::new("faketime");
        command.args(["-f", &ago]).arg(dqkd().get_program());
        command.args(["pki", "issue", role, id, "--days", "1", "--dir"]).arg(pki);
        let issued = output_of(&mut command);
        assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
        self.client(id)
    }

    pub(crate) fn pki(&self, args: &[&str]) {
        let dir = self.network.pki().display().to_string();
        run_to_end(&[&["pki"], args, &["--dir", &dir]].concat());
    }

    /// Makes an authority of its own, in a folder beside the network's. Returns the folder.
    pub(crate) fn foreign_authority(&self) -> PathBuf {
        let dir = self.network.dir().join("foreign");
        let text = dir.display().to_string();
        run_to_end(&["pki", "init", "--trust-domain", "dqkd.example", "--dir", &text]);
        dir
    }

    pub(crate) fn sae_listener(&self, site: usize) -> SocketAddr {
        address(&self.network.site(site).sae_url)
    }

    pub(crate) fn peer_listener(&self, site: usize) -> SocketAddr {
        address(&self.network.site(site).peer_url)
    }

    pub(crate) fn pool_listener(&self, server: usize) -> SocketAddr {
        address(&self.network.pool(server).url)
    }

    /// Lists an SAE at both sites, before they start.
    pub(crate) fn list_sae(&self, id: &str, kme: &str) {
        for site in 0..2 {
            let entry = format!("\n[[sae]]\nid = \"{id}\"\nkme = \"{kme}\"\n");
            append(&self.network.site(site).config, &entry);
        }
    }

    /// Adds lines to the configuration of a site, in front of its `[store]`.
    pub(crate) fn configure_site(&self, site: usize, lines: &str) {
        self.network.configure(site, "[store]", &format!("{lines}\n\n[store]"));
    }

    /// The same, if the program under attack knows these settings.
    pub(crate) fn configure_site_if_known(&self, site: usize, lines: &str) -> bool {
        let config = &self.network.site(site).config;
        let before = std::fs::read_to_string(config).unwrap();
        self.configure_site(site, lines);
        is_accepted_else(config, &before)
    }

    /// Adds lines to the configuration of a pool server, in front of its `[listen]`.
    pub(crate) fn configure_pool(&self, server: usize, lines: &str) {
        let config = &self.network.pool(server).config;
        let text = std::fs::read_to_string(config).unwrap();
        std::fs::write(config, text.replacen("[listen]", &format!("{lines}\n\n[listen]"), 1)).unwrap();
    }
}

/// A client with a certificate in this folder.
pub(crate) fn client_of(ca: &Path, folder: &Path, name: &str) -> RawClient {
    RawClient::new(ca, &folder.join(format!("{name}.pem")), &folder.join(format!("{name}.key")))
}

/// Puts the text back if the program does not accept what is there now.
fn is_accepted_else(config: &Path, before: &str) -> bool {
    let is_accepted = output_of(dqkd().arg("check-config").arg(config)).status.success();
    if !is_accepted {
        std::fs::write(config, before).unwrap();
    }
    is_accepted
}

pub(crate) fn append(path: &Path, text: &str) {
    let before = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, before + text).unwrap();
}

pub(crate) fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("https://").parse().unwrap()
}
