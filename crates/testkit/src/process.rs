//! The `dqkd` program as a process.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything; reaching it is a failure, never a way to synchronise.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// `dqkd` without the settings in the caller's environment: the one built with the tests, or the one that
/// `DQKD_BIN` names.
pub fn dqkd() -> Command {
    bare(std::env::var_os("DQKD_BIN").map_or_else(|| program("dqkd"), PathBuf::from))
}

/// The same for `qkd014`.
pub fn qkd014() -> Command {
    bare(program("qkd014"))
}

fn bare(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("DQKD_") || name.starts_with("QKD014_") || name == "RUST_LOG" {
            command.env_remove(&*name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A program of this workspace, beside the running test: `dqkd`, `qkd014` or `examples/wrong-kme`. Cargo
/// builds only the programs of the package under test, so the first call builds all of them if one is missing
/// or old.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let program = folder.join(name);
    if is_old(&program) {
        BUILT.get_or_init(|| build_programs(folder));
        assert!(program.exists(), "{} was not built", program.display());
    }
    program
}

/// Whether it is missing, or older than a source of it.
fn is_old(program: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let Some(built) = changed(program) else { return true };
    // Written by Cargo: the program, a colon, its sources.
    let sources = std::fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    sources.split_whitespace().skip(1).any(|source| changed(Path::new(source)).is_none_or(|at| at > built))
}

/// With examples, Cargo gives the libraries the same features as for tests, so that no library is built
/// twice.
fn build_programs(folder: &Path) {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--locked", "--quiet", "--workspace", "--bins", "--examples", "--target-dir"]);
    build.arg(folder.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let built = output_of(&mut build);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// Runs the program to its end.
pub fn output_of(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

/// Runs the program to its end; it must succeed. Returns what it printed.
pub fn run_to_end(args: &[&str]) -> String {
    let output = output_of(dqkd().args(args));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "dqkd {args:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "never happened: {what}; logs are beside the configurations");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon as a process; killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `dqkd COMMAND --config FILE` and waits until it has printed `listeners` lines with its
    /// addresses.
    pub fn start(command: &str, config: &Path, listeners: usize) -> Self {
        Self::try_start(command, config, listeners).unwrap_or_else(|log| panic!("{log}"))
    }

    /// The same; the error is its log.
    pub fn try_start(command: &str, config: &Path, listeners: usize) -> Result<Self, String> {
        Starting::launch(command, config).up(listeners)
    }

    /// What it wrote to standard error so far, over all of its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM; returns the exit status.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < until, "the daemon did not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Resident memory in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Most resident memory so far, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// A daemon that may not serve yet; killed when dropped.
pub struct Starting {
    daemon: Daemon,
    lines: mpsc::Receiver<String>,
}

impl Starting {
    /// Starts `dqkd COMMAND --config FILE` and returns at once.
    pub fn launch(command: &str, config: &Path) -> Self {
        let log = config.with_extension("log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut process = dqkd();
        process.arg(command).arg("--config").arg(config).stdout(Stdio::piped()).stderr(file);
        let mut daemon = Daemon { child: process.spawn().unwrap(), log };
        let lines = lines_of(&mut daemon.child);
        Self { daemon, lines }
    }

    /// Whether it has printed a line, which it does when it serves.
    pub fn serves(&self) -> bool {
        self.lines.try_recv().is_ok()
    }

    /// Waits until it has printed `listeners` lines with its addresses. The error is its log.
    pub fn up(self, listeners: usize) -> Result<Daemon, String> {
        for _ in 0..listeners {
            if self.lines.recv_timeout(PATIENCE).is_err() {
                return Err(format!(
                    "a daemon did not start: {}\n{}",
                    self.daemon.log.display(),
                    self.daemon.log()
                ));
            }
        }
        Ok(self.daemon)
    }

    /// Sends SIGKILL.
    pub fn kill(self) {
        self.daemon.kill();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that ends with the test, however the test ends.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of a child's standard output, read in a thread so that the child never blocks.
pub fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let stdout = child.stdout.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}
