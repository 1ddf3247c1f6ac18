//! A file system for one site's database, which can be filled up and made read-only.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sparse: only used space counts.
const IMAGE_BYTES: u64 = 2 << 30;
/// Bytes that the ballast file leaves free.
const LEFT_BYTES: u64 = 64 << 10;
/// Most attempts to fill a disk that others write to.
const FILL_ATTEMPTS: u32 = 10;

/// An ext4 in a file. On ext4 an immutable file refuses writes through descriptors that are open already,
/// which neither permissions nor a read-only mount do.
pub(crate) struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Fails if this user may not mount, and says why.
    pub(crate) fn mount(image: &Path, at: &Path) -> Result<Self, String> {
        File::create(image).unwrap().set_len(IMAGE_BYTES).unwrap();
        std::fs::create_dir_all(at).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self { at: at.to_owned() })
    }

    /// The database file on it.
    pub(crate) fn database(&self) -> PathBuf {
        self.at.join("site.db")
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.at
    }

    /// Fills the disk. Others may write to it meanwhile and take the space first: then tries again.
    pub(crate) fn fill(&self) -> Result<(), String> {
        for _ in 1..FILL_ATTEMPTS {
            if self.try_to_fill().is_ok() {
                return Ok(());
            }
            self.free();
        }
        self.try_to_fill()
    }

    fn try_to_fill(&self) -> Result<(), String> {
        let free = run(Command::new("stat").args(["-f", "-c", "%a %S"]).arg(&self.at))?;
        let (blocks, block_bytes) = free.trim().split_once(' ').ok_or("stat says nothing")?;
        let free: u64 = blocks.parse::<u64>().unwrap() * block_bytes.parse::<u64>().unwrap();
        let size = free.saturating_sub(LEFT_BYTES).to_string();
        run(Command::new("fallocate").args(["-l", &size]).arg(self.ballast())).map(drop)
    }

    pub(crate) fn free(&self) {
        let _ = std::fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Makes the folder, the database and its log read-only, or writable again. Files that come and go
    /// meanwhile are no failure. Leaves out the shared index (`-shm`): SQLite maps it into memory, and a
    /// write to a mapped page of an immutable file kills the process with SIGBUS.
    pub(crate) fn set_read_only(&self, is_read_only: bool) -> Result<(), String> {
        let flag = if is_read_only { "+i" } else { "-i" };
        let mut paths = vec![self.at.clone()];
        paths.extend(std::fs::read_dir(&self.at).unwrap().map(|entry| entry.unwrap().path()));
        let is_meant =
            |path: &PathBuf| path.ends_with("site.db") || path.ends_with("site.db-wal") || *path == self.at;
        let mut done = 0;
        let mut failure = String::new();
        for path in paths.iter().filter(|path| is_meant(path)) {
            match run(Command::new("chattr").arg(flag).arg(path)) {
                Ok(_) => done += 1,
                Err(error) => failure = error,
            }
        }
        if done < 2 { Err(failure) } else { Ok(()) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.set_read_only(false);
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// The command's output, or its error output if it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
