//! Two sites and three pool servers on this machine, as `dqkd demo` starts them: what an SAE waits for.
//!
//! `enc_keys/64` is one batch: made at site-a, pushed to site-b, regenerated and committed there, acknowledged,
//! committed at site-a, delivered. SQLite with `synchronous = FULL` under it, on whatever disk the temporary
//! folder is.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use qkd014::{Client, Credentials, KeyRequest};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Runtime;

struct Demo {
    child: Child,
    _dir: tempfile::TempDir,
    runtime: Runtime,
    alice: Client,
    bob: Client,
}

/// Started with the first measurement, so that listing the benches starts nothing.
static DEMO: LazyLock<Demo> = LazyLock::new(Demo::start);

impl Demo {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let demo = dir.path().join("demo");
        let mut command = Command::new(env!("CARGO_BIN_EXE_dqkd"));
        let mut child = command.args(["demo", "--dir"]).arg(&demo).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("Ctrl-C")), "the demo did not start");
        std::thread::spawn(move || lines.for_each(drop));
        let text = std::fs::read_to_string(demo.join("demo.json")).unwrap();
        let manifest: Value = serde_json::from_str(&text).unwrap();
        let path = |value: &Value| PathBuf::from(value.as_str().unwrap());
        let client = |site: usize| {
            let (site, sae) = (&manifest["sites"][site], &manifest["sites"][site]["saes"][0]);
            let (ca, cert, key) = (path(&manifest["ca"]), path(&sae["cert"]), path(&sae["key"]));
            let credentials = Credentials::from_pem_files(ca, cert, key).unwrap();
            Client::new(site["sae_url"].as_str().unwrap(), credentials).unwrap()
        };
        let (alice, bob) = (client(0), client(1));
        Self { child, _dir: dir, runtime: Runtime::new().unwrap(), alice, bob }
    }

    fn enc(&self, number: u32) -> Vec<String> {
        let request = KeyRequest { number: Some(number), ..KeyRequest::default() };
        let made = self.runtime.block_on(self.alice.enc_keys("bob", &request)).unwrap();
        made.keys.into_iter().map(|key| key.id).collect()
    }
}

fn calls(c: &mut Criterion) {
    let mut group = c.benchmark_group("on demand");
    group.sample_size(50).measurement_time(Duration::from_secs(8));
    for number in [1, 64] {
        group.bench_function(BenchmarkId::new("enc_keys", number), |b| {
            let demo = &*DEMO;
            b.iter(|| demo.enc(number));
        });
        group.bench_function(BenchmarkId::new("dec_keys", number), |b| {
            let demo = &*DEMO;
            let fetch = |ids: Vec<String>| demo.runtime.block_on(demo.bob.dec_keys("alice", &ids)).unwrap();
            b.iter_batched(|| demo.enc(number), fetch, criterion::BatchSize::PerIteration);
        });
    }
    group.bench_function("status", |b| {
        let demo = &*DEMO;
        b.iter(|| demo.runtime.block_on(demo.alice.status("bob")).unwrap());
    });
    group.finish();
    if let Some(demo) = LazyLock::get(&DEMO) {
        let _ = kill_process(Pid::from_child(&demo.child), Signal::TERM);
    }
}

criterion_group!(sites, calls);
criterion_main!(sites);
