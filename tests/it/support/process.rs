//! The `dqkd` program as a process.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything; reaching it is a failure, never a way to synchronise.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The program under test, without settings of whoever runs the tests: the one that was built with them, or the
/// one that `DQKD_BIN` names.
pub(crate) fn dqkd() -> Command {
    let program = std::env::var_os("DQKD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_dqkd").into());
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DQKD_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn output_of(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

/// Runs the program to its end; it must succeed. Returns what it printed.
pub(crate) fn run_to_end(args: &[&str]) -> String {
    let output = output_of(dqkd().args(args));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "dqkd {args:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "never happened: {what}; logs are beside the configurations");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon in a process of its own; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    log: std::path::PathBuf,
}

impl Daemon {
    /// Starts `dqkd COMMAND --config FILE` and waits until it prints that it listens. `listeners` lines come.
    pub(crate) fn start(command: &str, config: &Path, listeners: usize) -> Self {
        Self::try_start(command, config, listeners).unwrap_or_else(|log| panic!("{log}"))
    }

    /// The same; what it logged when it did not come up.
    pub(crate) fn try_start(command: &str, config: &Path, listeners: usize) -> Result<Self, String> {
        let log = config.with_extension("log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut process = dqkd();
        process.arg(command).arg("--config").arg(config).stdout(Stdio::piped()).stderr(file);
        let mut daemon = Self { child: process.spawn().unwrap(), log };
        let lines = lines_of(&mut daemon.child);
        for _ in 0..listeners {
            let line = lines.recv_timeout(PATIENCE);
            if line.is_err() {
                return Err(format!("{} did not start:\n{}", config.display(), daemon.log()));
            }
        }
        Ok(daemon)
    }

    /// What it wrote to standard error so far, over all of its starts.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns how it ended.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < until, "the daemon did not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Resident memory in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that ends with the test, however the test ends.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of a child's standard output, read so that it never waits for us.
pub(crate) fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let stdout = child.stdout.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}
