//! A private Postgres for tests, from Debian's packages. It does not touch the machine's own databases.
//!
//! `TestPostgres::shared()` is one server for all test programs of this user, because a new one takes seconds and
//! the runner starts a process for each test. Each process that uses it holds a shared lock as long as it
//! lives; the kernel releases the lock even after SIGKILL. A watcher beside the server (`postgres_watch.sh`)
//! erases the databases of processes that are gone. When nobody holds the lock any more, it ends the server
//! and erases everything. `TestPostgres::private()` is one that a test may stop, kill and starve. For root, which
//! Postgres refuses to run as, it runs as the user of Debian's package. Tests under `tests/` include this
//! file by its path.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use rustix::process::{Pid, Signal, kill_process};

/// Seconds without users after which a shared server ends.
const SHARED_IDLE_SECS: u32 = 30;
/// The same for a private server.
const PRIVATE_IDLE_SECS: u32 = 2;
/// Below the system's ephemeral ports, so that a server finds its port free again after a stop.
const PORTS: std::ops::Range<u32> = 26_000..32_000;
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 200
shared_buffers = 64MB
max_wal_size = 256MB
ssl = on
ssl_cert_file = 'server.pem'
ssl_key_file = 'server-key.pem'
";
const WATCHER: &str = include_str!("postgres_watch.sh");

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Open transactions are rolled back, clients are told.
    Fast,
    /// Without a checkpoint: the next start recovers from the log.
    Immediate,
    /// SIGKILL to the postmaster.
    Kill,
}

/// A running server, which ends some time after the last process that uses it.
pub struct TestPostgres {
    pub(super) folder: PathBuf,
    data: PathBuf,
    port: u16,
    /// While this is held, no other test's server takes the port, even while this server is stopped.
    claim: Option<TcpListener>,
    is_shared: bool,
    /// Locked (shared) until the process ends or this is dropped.
    _user: File,
}

impl TestPostgres {
    pub const USER: &'static str = "dqkd";
    /// The password for TCP; the socket needs none. Has characters that a URL must escape.
    pub const PASSWORD: &'static str = "a p@ss/word%";
    const PASSWORD_IN_URL: &'static str = "a%20p%40ss%2Fword%25";

    /// The server that all tests share. They may do to it only what a client may.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<TestPostgres> = LazyLock::new(|| {
            // Another version of this file uses another server.
            let mut hasher = DefaultHasher::new();
            (include_str!("postgres.rs"), WATCHER, &*BINARIES).hash(&mut hasher);
            let user = rustix::process::getuid().as_raw();
            let name = format!("dqkd-postgres-{user}-{:08x}", hasher.finish() & 0xffff_ffff);
            let folder = std::env::temp_dir().join(name);
            let data = folder.join("data");
            TestPostgres::open(folder, data, true)
        });
        &SHARED
    }

    /// A server for the caller alone, which ends when it is dropped.
    pub fn private() -> Self {
        let folder = private_folder();
        let data = folder.join("data");
        Self::open(folder, data, false)
    }

    /// The same with its files in `data`, which must not exist yet and is deleted with the server.
    pub fn private_at(data: &Path) -> Self {
        Self::open(private_folder(), data.to_owned(), false)
    }

    /// A private server that follows this one until it is promoted.
    pub fn standby(&self) -> Self {
        let folder = private_folder();
        make_folder(&folder);
        let data = folder.join("data");
        fs::create_dir_all(&data).unwrap();
        own(&data, 0o700);
        let user = lock_file(&folder.join("users.lock"));
        user.lock_shared().unwrap();
        let (port, claim) = free_ports().next().unwrap();
        let server = Self { folder, data, port, claim: Some(claim), is_shared: false, _user: user };
        server.watch();
        let mut backup = as_server("pg_basebackup");
        backup.arg("-h").arg(&self.data).args(["-p", &self.port.to_string(), "-U", Self::USER]);
        run(backup.arg("-D").arg(&server.data).args(["-R", "-X", "stream", "-c", "fast"])).unwrap();
        let file = server.data.join("postgresql.conf");
        let place = format!("port = {port}\nunix_socket_directories = '{}'\n", server.data.display());
        let copied = fs::read_to_string(&file).unwrap();
        fs::write(&file, [copied, place].concat()).unwrap();
        server.start().unwrap();
        server
    }

    /// Promotes a standby to an independent server.
    pub fn promote(&self) {
        self.control(&["promote", "-w", "-t", "60"]).unwrap();
    }

    fn open(folder: PathBuf, data: PathBuf, is_shared: bool) -> Self {
        loop {
            make_folder(&folder);
            let starting = lock_file(&folder.join("start.lock"));
            starting.lock().unwrap();
            // The watcher erases the folder while it holds this lock. Checks that the locked file still
            // exists.
            let same = fs::metadata(folder.join("start.lock"))
                .is_ok_and(|found| found.ino() == starting.metadata().unwrap().ino());
            if !same {
                continue;
            }
            let user = lock_file(&folder.join("users.lock"));
            user.lock_shared().unwrap();
            // The watcher looks at the time of this write.
            user.write_at(b".", 0).unwrap();
            let mut server = Self { folder, data, port: 0, claim: None, is_shared, _user: user };
            server.watch();
            server.come_up();
            return server;
        }
    }

    /// A new, empty database; its URL goes through the unix socket. It is erased some time after this
    /// process.
    pub fn new_database(&self) -> String {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        // The watcher reads the process out of the name.
        let name = format!("t_{}_{number}", std::process::id());
        self.sql("postgres", &[&format!("DROP DATABASE IF EXISTS {name}")]);
        self.sql("postgres", &[&format!("CREATE DATABASE {name} TEMPLATE template0")]);
        self.socket_url(&name)
    }

    /// A database's URL through the unix socket: no password, no TLS.
    pub fn socket_url(&self, database: &str) -> String {
        let folder = self.data.display().to_string().replace('/', "%2F");
        format!("postgres://{}@{folder}:{}/{database}", Self::USER, self.port)
    }

    /// The same database through TCP on the loopback, with the password and TLS that checks the server's
    /// name.
    pub fn tls_url(&self, database: &str) -> String {
        let (user, password, ca) = (Self::USER, Self::PASSWORD_IN_URL, self.ca());
        format!(
            "postgres://{user}:{password}@localhost:{}/{database}?sslmode=verify-full&sslrootcert={}",
            self.port,
            ca.display()
        )
    }

    /// The last part of a URL's path.
    pub fn database_of(url: &str) -> &str {
        url.split('?').next().and_then(|url| url.rsplit('/').next()).unwrap()
    }

    /// The authority that issued the server's certificate, which names `localhost` and 127.0.0.1.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// An authority that did not issue it.
    pub fn another_ca(&self) -> PathBuf {
        self.folder.join("another-ca.pem")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.data.join("server.log")).unwrap_or_default()).into_owned()
    }

    /// Runs statements as the superuser. Returns their output, unaligned.
    pub fn sql(&self, database: &str, statements: &[&str]) -> String {
        self.try_sql(database, statements).unwrap_or_else(|error| panic!("{statements:?}: {error}"))
    }

    /// The same; the error is the server's message.
    pub fn try_sql(&self, database: &str, statements: &[&str]) -> Result<String, String> {
        let mut psql = program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", Self::USER, "-d", database]);
        psql.arg("-h").arg(&self.data).args(["-p", &self.port.to_string()]);
        for statement in statements {
            psql.args(["-c", statement]);
        }
        run(&mut psql)
    }

    /// A dump of a database, as SQL statements.
    pub fn dump(&self, database: &str) -> Result<String, String> {
        let mut dump = program("pg_dump");
        dump.args(["-U", Self::USER, "-d", database, "-p", &self.port.to_string(), "-h"]).arg(&self.data);
        run(&mut dump)
    }

    /// The postmaster's process ID, while there is one.
    pub fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Sends a signal to the postmaster and to all of its processes.
    pub fn signal_all(&self, signal: Signal) {
        let Some(postmaster) = self.pid().map(|pid| pid.to_string()) else { return };
        let children = children_of(&postmaster);
        for pid in [&postmaster].into_iter().chain(&children) {
            // A child may have ended meanwhile.
            let _ = send(signal, pid);
        }
    }

    /// Ends the server; its files stay.
    pub fn stop(&self, how: Stop) -> Result<(), String> {
        assert!(!self.is_shared, "others use it");
        match how {
            Stop::Fast => self.control(&["stop", "-w", "-t", "60", "-m", "fast"]),
            Stop::Immediate => self.control(&["stop", "-w", "-t", "60", "-m", "immediate"]),
            Stop::Kill => {
                let pid = self.pid().ok_or("it does not run")?.to_string();
                let rest = children_of(&pid);
                send(Signal::KILL, &pid)?;
                // Waits until its other processes have ended: before that no new server can start on their
                // files.
                let is_there = |pid: &String| Path::new("/proc").join(pid).exists();
                for _ in 0..2000 {
                    if !rest.iter().chain([&pid]).any(is_there) {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err("its processes do not end".to_owned())
            }
        }
    }

    /// Starts it again, at the same port. Also fails if it cannot recover, for example on a full disk.
    pub fn start(&self) -> Result<(), String> {
        self.control(&["start", "-w", "-t", "60", "-l", &self.data.join("server.log").display().to_string()])
            .map_err(|error| format!("{error}\n{}", self.log()))
    }

    fn control(&self, args: &[&str]) -> Result<(), String> {
        run(as_server("pg_ctl").arg("-D").arg(&self.data).args(args)).map(drop)
    }

    /// Makes the server run, whether it is new, running already, stopped or killed.
    fn come_up(&mut self) {
        let port_file = self.folder.join("port");
        if let Some(port) = fs::read_to_string(&port_file).ok().and_then(|text| text.parse().ok()) {
            self.port = port;
            let socket = self.data.join(format!(".s.PGSQL.{port}"));
            if UnixStream::connect(socket).is_ok() || self.start().is_ok() {
                return;
            }
        }
        let mut failure = String::new();
        for (port, claim) in free_ports().take(5) {
            (self.port, self.claim) = (port, Some(claim));
            self.make_files();
            match self.start() {
                Ok(()) => return fs::write(&port_file, port.to_string()).unwrap(),
                Err(error) => failure = error,
            }
        }
        panic!("Postgres does not start: {failure}");
    }

    fn make_files(&self) {
        let _ = fs::remove_dir_all(&self.data);
        fs::create_dir_all(&self.data).unwrap();
        own(&self.data, 0o700);
        let password = self.folder.join("password");
        fs::write(&password, Self::PASSWORD).unwrap();
        let mut initdb = as_server("initdb");
        initdb.arg("-D").arg(&self.data).arg("--pwfile").arg(&password);
        initdb.args(["--username", Self::USER, "--auth-local", "trust", "--auth-host", "scram-sha-256"]);
        initdb.args(["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"]);
        run(&mut initdb).unwrap_or_else(|error| panic!("{error}"));
        let certificate = issue(&self.ca());
        issue(&self.another_ca());
        for (name, text) in [("server.pem", certificate.0), ("server-key.pem", certificate.1)] {
            fs::write(self.data.join(name), text).unwrap();
            own(&self.data.join(name), 0o600);
        }
        let file = self.data.join("postgresql.conf");
        let (defaults, socket) = (fs::read_to_string(&file).unwrap(), self.data.display());
        let place = format!("port = {}\nunix_socket_directories = '{socket}'\n", self.port);
        fs::write(&file, [&defaults, SETTINGS, &place].concat()).unwrap();
    }

    /// Starts a watcher, unless there is one.
    fn watch(&self) {
        let idle_secs = if self.is_shared { SHARED_IDLE_SECS } else { PRIVATE_IDLE_SECS };
        // In its own session, so that the watcher survives when a test run is ended with its process group.
        let mut watcher = Command::new("setsid");
        watcher
            .args(["--fork", "bash", "-c", WATCHER, "dqkd-postgres-watch"])
            .arg(&self.folder)
            .arg(&self.data);
        watcher.arg(idle_secs.to_string()).arg(&*BINARIES).args(&*RUN_AS);
        watcher.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(watcher.status().unwrap().success());
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        if !self.is_shared {
            // It may be paused.
            self.signal_all(Signal::CONT);
            let _ = self.stop(Stop::Immediate);
            let _ = fs::remove_dir_all(&self.data);
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Where the newest Postgres of this machine has its programs.
static BINARIES: LazyLock<PathBuf> = LazyLock::new(|| {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let found = versions.map(|entry| entry.path()).filter(|path| path.join("bin/initdb").exists());
    let newest = found.max_by_key(|path| number(path));
    newest.expect("tests need Debian's package postgresql: tests/run.sh installs it").join("bin")
});

/// The command prefix for programs that must not run as root.
static RUN_AS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let is_root = rustix::process::getuid().is_root();
    if is_root { vec!["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] } else { vec![] }
});

pub(super) fn program(name: &str) -> Command {
    let mut command = Command::new(BINARIES.join(name));
    command.env("LC_ALL", "C.UTF-8").current_dir("/");
    command
}

/// A program that runs as the server's user.
fn as_server(name: &str) -> Command {
    let Some((first, rest)) = RUN_AS.split_first() else { return program(name) };
    let mut command = Command::new(first);
    command.args(rest).arg(BINARIES.join(name)).env("LC_ALL", "C.UTF-8").current_dir("/");
    command
}

/// The command's output, or its error output if it failed.
pub(super) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn send(signal: Signal, pid: &str) -> Result<(), String> {
    let pid = pid.parse().ok().and_then(Pid::from_raw).ok_or_else(|| format!("no process: {pid}"))?;
    kill_process(pid, signal).map_err(|error| format!("{pid:?}: {error}"))
}

fn children_of(pid: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn lock_file(path: &Path) -> File {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap()
}

/// Makes a folder that the server's user can enter.
fn make_folder(path: &Path) {
    fs::create_dir_all(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn private_folder() -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("dqkd-postgres-private-{}-{number}", std::process::id()));
    // Left by an earlier process with this ID that was killed.
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn own(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if !RUN_AS.is_empty() {
        let id = |flag| run(Command::new("id").args([flag, "postgres"])).unwrap().parse().unwrap();
        std::os::unix::fs::chown(path, Some(id("-u")), Some(id("-g"))).unwrap();
    }
}

/// Free ports, each with its claim: a listener on the next port. Every process has another order.
fn free_ports() -> impl Iterator<Item = (u16, TcpListener)> {
    let pairs = (PORTS.end - PORTS.start) / 2;
    let start = std::process::id().wrapping_mul(7919);
    let port = move |step: u32| PORTS.start + 2 * (start.wrapping_add(step) % pairs);
    let ports = (0..pairs).map(move |step| u16::try_from(port(step)).unwrap());
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port)).ok();
    ports.filter_map(move |port| {
        let claim = bind(port + 1)?;
        bind(port).map(|_| (port, claim))
    })
}

/// Makes a new authority and writes it to `ca`. Returns a certificate and key for a server on the loopback.
fn issue(ca: &Path) -> (String, String) {
    let name = |text: &str| {
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, text);
        name
    };
    let ca_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.distinguished_name = name(&format!("Postgres of tests, {}", ca.display()));
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    fs::write(ca, authority.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut server = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    server.distinguished_name = name("Postgres of tests");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = server.signed_by(&key, &Issuer::from_params(&authority, &ca_key)).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[cfg(test)]
#[path = "postgres_tests.rs"]
mod tests;
