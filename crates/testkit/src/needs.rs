//! Programs that tests need on the machine. Where one is missing, its tests are skipped, and standard error
//! names each of them. With `DQKD_TESTS=all` (`tests/run.sh` and CI) such a test fails instead.

use std::io::Write as _;
use std::path::Path;
use std::sync::Once;

/// A program that is not part of this workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Postgres,
    Curl,
    Faketime,
    Haproxy,
    Git,
    Openssl,
}

/// Ends the test where one of these is missing: `needs!(Postgres, Curl);` as its first line.
#[macro_export]
macro_rules! needs {
    ($($need:ident),+) => {
        if $($crate::Need::$need.is_missing())||+ {
            return;
        }
    };
}
impl Need {
    /// Whether it is missing here. If so, prints which test is skipped.
    pub fn is_missing(self) -> bool {
        static HINT: Once = Once::new();
        if self.is_there() {
            return false;
        }
        let package = self.package();
        match std::env::var("DQKD_TESTS").as_deref() {
            Err(_) => {}
            Ok("all") => panic!("no {self:?} here: install Debian's package {package}, as tests/run.sh does"),
            Ok(other) => panic!("DQKD_TESTS can be \"all\", not {other:?}"),
        }
        HINT.call_once(|| say("some tests are left out; `bash tests/run.sh` installs what they need\n"));
        // The test runner names the thread after the test.
        let thread = std::thread::current();
        say(&format!("left out (no {package}): {}\n", thread.name().unwrap_or("a test")));
        true
    }

    fn is_there(self) -> bool {
        if self == Self::Postgres {
            let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
            return versions.map(|version| version.path().join("bin/initdb")).any(|path| path.exists());
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(Path::new(self.package())).is_file())
    }

    /// The Debian package, and the program in it.
    fn package(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Curl => "curl",
            Self::Faketime => "faketime",
            Self::Haproxy => "haproxy",
            Self::Git => "git",
            Self::Openssl => "openssl",
        }
    }
}

/// Writes directly to standard error, in one piece: the runner would hide the output of a passing test.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
