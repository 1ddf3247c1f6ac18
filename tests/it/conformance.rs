//! `qkd014 conformance` against real sites: everything passes, in both profiles, with every fixture, and
//! defects are reported.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use testkit::needs;
use testkit::{Network, PATIENCE, TcpLink, output_of, qkd014, run_to_end};

/// An SAE ID that only a careful KME parses correctly.
const ODD_ID: &str = "rack 7/50%25 é→2";
/// A demand that no key meets: there are only three pool servers.
const UNMET: &str = r#"{"dqkd_source_grade": {"min_pools": 8}}"#;
/// More keys than a pool set gives, so that T45 finds the end of a set.
const MAX_KEYS: &str = "20000";

/// Three sites with every fixture of the tester; carries out what its hooks ask for.
struct Laboratory {
    /// Declared before `network`, which uses their ports.
    links: [TcpLink; 2],
    network: Network,
    asks: PathBuf,
}

impl Laboratory {
    fn start() -> Self {
        let mut network = Network::generate(3);
        let asks = network.dir().join("asks");
        std::fs::create_dir(&asks).unwrap();
        let port = |url: &str| url.rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let peers = [0, 1].map(|site| network.site(site).peer_url.clone());
        // Site A reaches site B, and B reaches A, through links that can be cut.
        let link = |from: usize, to: usize, index: u16| {
            let spare = network.spare_port(index);
            network.configure(from, &peers[to], &format!("https://127.0.0.1:{spare}"));
            TcpLink::start(spare, port(&peers[to]))
        };
        let links = [link(0, 1, 0), link(1, 0, 1)];
        for site in 0..3 {
            let (domain, odd) = ("trust_domain = \"dqkd.example\"", "[[sae]]\nid = \"bob\"");
            network.configure(site, domain, &format!("{domain}\nsae_admission = \"listed\""));
            network.configure(site, odd, &format!("[[sae]]\nid = \"{ODD_ID}\"\nkme = \"site-b\"\n\n{odd}"));
        }
        let (pki, foreign) = (network.pki(), network.dir().join("foreign"));
        let (pki, foreign) = (pki.to_str().unwrap(), foreign.to_str().unwrap());
        run_to_end(&["pki", "issue", "sae", "xavier", "--dir", pki]);
        run_to_end(&["pki", "init", "--trust-domain", "dqkd.example", "--dir", foreign]);
        run_to_end(&["pki", "issue", "sae", "alice", "--dir", foreign]);
        network.start_pools(3);
        network.start_sites();
        Self { links, network, asks }
    }

    /// A shell command that asks for `what` and waits until it is done.
    fn hook(&self, what: &str) -> String {
        let ask = self.asks.join(what).display().to_string();
        format!("touch '{ask}' && while [ -e '{ask}' ]; do sleep 0.05; done")
    }

    fn command(&self, profile: &str) -> Command {
        let file = |dir: &Path, name: &str| dir.join(name).display().to_string();
        let (pki, foreign) = (self.network.pki(), self.network.dir().join("foreign"));
        let mut command = qkd014();
        command.args(["conformance", "--profile", profile, "--drain", "--max-keys", MAX_KEYS]);
        command.arg("--demo").arg(self.network.manifest());
        command.args(["--x-cert", &file(&pki, "xavier.pem"), "--x-key", &file(&pki, "xavier.key")]);
        command.args(["--y-cert", &file(&foreign, "alice.pem"), "--y-key", &file(&foreign, "alice.key")]);
        command.args(["--odd-id", ODD_ID, "--unmet-extension", UNMET]);
        for what in ["restart", "cut", "heal", "stop-supply", "resume-supply"] {
            command.args([&format!("--{what}-hook"), &self.hook(what)]);
        }
        command
    }

    /// Runs the tester to its end, and meanwhile does what its hooks ask for.
    fn run(&mut self, command: &mut Command) -> Output {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut child = Killed(Some(child));
        let until = Instant::now() + 2 * PATIENCE;
        while child.0.as_mut().unwrap().try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the tester did not end");
            for what in ["restart", "cut", "heal", "stop-supply", "resume-supply"] {
                let ask = self.asks.join(what);
                if ask.exists() {
                    self.serve(what);
                    std::fs::remove_file(ask).unwrap();
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.0.take().unwrap().wait_with_output().unwrap()
    }

    fn serve(&mut self, what: &str) {
        match what {
            "restart" => {
                (0..2).for_each(|site| self.network.kill_site(site));
                (0..2).for_each(|site| self.network.start_site(site));
            }
            "cut" => self.links.iter().for_each(TcpLink::cut),
            "heal" => self.links.iter().for_each(TcpLink::heal),
            "stop-supply" => (0..3).for_each(|pool| self.network.kill_pool(pool)),
            "resume-supply" => self.network.start_pools(3),
            other => panic!("nobody asks for {other}"),
        }
    }
}

struct Killed(Option<Child>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn all_pass(profile: &str) {
    let mut laboratory = Laboratory::start();
    let started = Instant::now();
    let mut command = laboratory.command(profile);
    let output = laboratory.run(command.args(["--format", "json"]));
    let took = started.elapsed();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    let tests = report["tests"].as_array().unwrap();
    let not_passed: Vec<&Value> = tests.iter().filter(|test| test["verdict"] != "pass").collect();
    assert!(not_passed.is_empty(), "{not_passed:#?}");
    assert_eq!((tests.len(), output.status.code()), (54, Some(0)), "{stderr}");
    assert_eq!(report["profile"], profile);
    eprintln!("{profile}: {took:?}, {} keys", report["keys_used"]);
}

#[test]
fn all_54_tests_pass_in_the_lenient_profile() {
    needs!(Curl);
    all_pass("lenient");
}

#[test]
fn all_54_tests_pass_in_the_strict_profile() {
    needs!(Curl);
    all_pass("strict");
}

#[test]
fn a_strict_kme_passes_the_lenient_profile_and_its_stricter_reading_is_named_in_the_strict_one() {
    needs!(Curl);
    let mut network = Network::generate(2);
    for site in 0..2 {
        network.configure(site, "[store]", "[etsi014]\nstrict = true\n\n[store]");
    }
    network.start_pools(3);
    network.start_sites();
    // Also with bundles instead of PEM files, and C beside B.
    let (site_a, alice) = network.sae("alice");
    let (site_b, bob) = network.sae("bob");
    let words = [alice, bob].map(|sae| {
        let file = network.dir().join(format!("{}.word", sae.id));
        std::fs::write(&file, &sae.p12_password).unwrap();
        file
    });
    let carol = network.sae("carol").1;
    let run = |profile: &str| {
        let mut command = qkd014();
        command.args([
            "conformance",
            "--profile",
            profile,
            "--kme-a",
            &site_a.sae_url,
            "--kme-b",
            &site_b.sae_url,
        ]);
        command.arg("--ca").arg(network.ca());
        command
            .args(["--a-id", "alice"])
            .arg("--a-p12")
            .arg(&alice.p12)
            .arg("--a-p12-password-file")
            .arg(&words[0]);
        command
            .args(["--b-id", "bob"])
            .arg("--b-p12")
            .arg(&bob.p12)
            .arg("--b-p12-password-file")
            .arg(&words[1]);
        command.args(["--c-id", "carol"]).arg("--c-cert").arg(&carol.cert).arg("--c-key").arg(&carol.key);
        output_of(&mut command)
    };
    let lenient = run("lenient");
    let table = text(&lenient.stdout);
    assert_eq!(lenient.status.code(), Some(0), "{table}");
    assert!(
        table.contains("note      expected status 200 and a key for an empty additional_slave_SAE_IDs"),
        "{table}"
    );
    assert!(table.contains("profile lenient: 47 passed, 0 failed, 7 skipped"), "{table}");
    let strict = run("strict");
    let table = text(&strict.stdout);
    assert_eq!(strict.status.code(), Some(1), "{table}");
    assert!(table.contains("T26  FAIL"), "{table}");
    assert!(table.contains("profile strict: 46 passed, 1 failed, 7 skipped"), "{table}");
    assert!(
        table.contains("skipped   needs a command that kills and starts both KMEs: --restart-hook"),
        "{table}"
    );
    assert!(text(&strict.stderr).contains("1 of 54 tests failed"));
}

#[test]
fn a_hook_that_fails_is_a_failure_and_too_few_keys_are_a_reason_to_skip() {
    needs!(Curl);
    let network = Network::start(2);
    let run = |args: &[&str]| {
        let mut command = qkd014();
        output_of(command.args(["conformance", "--demo"]).arg(network.manifest()).args(args))
    };
    let output = run(&["--only", "48", "--restart-hook", "exit 3"]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("expected  a hook that ends with success"), "{table}");
    assert!(table.contains("received  exit status: 3"), "{table}");
    let output = run(&["--only", "33,46", "--max-keys", "2"]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}");
    assert!(table.contains("T33  pass") && table.contains("T46  skip"), "{table}");
    assert!(table.contains("skipped   would use more than 2 keys (--max-keys)"), "{table}");
}

#[test]
fn kmes_that_are_not_there_are_failures() {
    let network = Network::generate(2);
    let manifest = network.manifest();
    let mut command = qkd014();
    command.args(["conformance", "--timeout", "2", "--format", "junit", "--only", "1-8", "--demo"]);
    let output = output_of(command.arg(&manifest));
    let xml = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{xml}");
    assert!(xml.contains(r#"<testsuite name="etsi014.lenient" tests="8" "#), "{xml}");
    assert!(xml.contains(r#"<failure message="expected status 200" type="6.1 R12">"#), "{xml}");
    assert!(xml.contains("Connection refused"), "{xml}");
}

#[test]
fn wrong_usage_is_named_and_ends_with_2() {
    let network = Network::generate(2);
    let manifest = network.manifest();
    let manifest = manifest.to_str().unwrap();
    for (args, named) in [
        (&["--demo", manifest, "--only", "55"][..], "--only: `55` is not a test"),
        (&["--demo", manifest, "--unmet-extension", "[]"], "--unmet-extension is no JSON object"),
        (&["--demo", "/nowhere/demo.json"], "cannot read /nowhere/demo.json"),
        (&["--demo", manifest, "--cut-hook", "true"], "--heal-hook"),
        (&["--demo", manifest, "--c-id", "carol"], "--c-id needs --c-cert"),
        (&["--kme-a", "https://x", "--kme-b", "https://y", "--ca", "/nowhere/ca.pem"], "give --a-id"),
    ] {
        let output = output_of(qkd014().arg("conformance").args(args));
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(named), "{args:?}: {stderr}");
    }
}
