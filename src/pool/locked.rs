//! Memory for pools: never swapped where the limit allows, not in core dumps, wiped before it is freed.
//!
//! The only file of this room with `unsafe`: each use is one call that maps, advises, locks, borrows or
//! unmaps exactly the region that a [`LockedWords`] owns.
#![expect(
    unsafe_code,
    reason = "mmap, mlock and madvise have no safe form; each use has its proof beside it"
)]

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zeroize::Zeroize;

const WORD_BYTES: usize = 8;

static LOCKED_BYTES: AtomicU64 = AtomicU64::new(0);
static UNLOCKED_BYTES: AtomicU64 = AtomicU64::new(0);
static RAISE_LIMIT: Once = Once::new();
static WARN_UNLOCKED: Once = Once::new();

/// Why memory could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum LockedError {
    /// No words, or more than the address space holds.
    #[error("a pool of {0} words is not possible")]
    Size(usize),
    /// The system is out of memory.
    #[error("the system has no memory for a pool")]
    NoMemory(#[source] std::io::Error),
}

/// How much pool memory this process holds, and how much of it can never be swapped out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockReport {
    /// Bytes held in locked memory.
    pub locked_bytes: u64,
    /// Bytes that the limit did not allow to lock: they could reach a swap device.
    pub unlocked_bytes: u64,
    /// The soft limit on locked bytes (`RLIMIT_MEMLOCK`); `None` when there is none.
    pub limit_bytes: Option<u64>,
}

/// The present [`LockReport`] of this process.
pub fn lock_report() -> LockReport {
    raise_soft_limit();
    LockReport {
        locked_bytes: LOCKED_BYTES.load(Ordering::Relaxed),
        unlocked_bytes: UNLOCKED_BYTES.load(Ordering::Relaxed),
        limit_bytes: getrlimit(Resource::Memlock).current,
    }
}

/// 64-bit words in their own mapping: page-aligned, wiped and unmapped when dropped.
pub struct LockedWords {
    start: NonNull<u64>,
    words: usize,
    locked: bool,
}

// SAFETY: the mapping is owned by this value alone and has no thread affinity.
unsafe impl Send for LockedWords {}
// SAFETY: shared access only reads (`as_words`, `as_bytes`); writing needs `&mut self`.
unsafe impl Sync for LockedWords {}

impl LockedWords {
    /// `words` zero words.
    ///
    /// # Errors
    /// [`LockedError`] when the mapping fails. A failing lock is no error: see [`Self::is_locked`].
    pub fn zeroed(words: usize) -> Result<Self, LockedError> {
        raise_soft_limit();
        let size = words
            .checked_mul(WORD_BYTES)
            .filter(|size| *size > 0 && isize::try_from(*size).is_ok())
            .ok_or(LockedError::Size(words))?;
        // SAFETY: a null hint without MAP_FIXED lets the kernel choose a free place, so no existing
        // mapping is touched.
        let mapped = unsafe {
            mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }
        .map_err(|errno| LockedError::NoMemory(errno.into()))?;
        let start = NonNull::new(mapped.cast::<u64>()).ok_or(LockedError::Size(words))?;
        let mut region = Self { start, words, locked: false };
        region.keep_out_of_dumps_and_children();
        region.lock();
        Ok(region)
    }

    /// Best effort: a kernel without these advices still gives a working pool.
    fn keep_out_of_dumps_and_children(&self) {
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: the range is exactly our mapping; neither advice changes what this process reads.
            let advised = unsafe { madvise(self.address(), self.len_bytes(), advice) };
            if let Err(errno) = advised {
                tracing::debug!(?advice, %errno, "the kernel refused madvise on pool memory");
            }
        }
    }

    fn lock(&mut self) {
        // SAFETY: the range is exactly our mapping; locking changes residency only.
        let locked = unsafe { mlock(self.address(), self.len_bytes()) };
        self.locked = locked.is_ok();
        self.counter().fetch_add(self.len_bytes() as u64, Ordering::Relaxed);
        if let Err(errno) = locked {
            WARN_UNLOCKED.call_once(|| {
                tracing::warn!(
                    bytes = self.len_bytes(),
                    limit_bytes = ?getrlimit(Resource::Memlock).current,
                    %errno,
                    "pool memory cannot be locked and could reach a swap device; raise LimitMEMLOCK of \
                     the service (ulimit -l) or grant CAP_IPC_LOCK (logged once)"
                );
            });
        }
    }

    fn wipe(&mut self) {
        self.as_words_mut().zeroize();
    }

    fn counter(&self) -> &'static AtomicU64 {
        if self.locked { &LOCKED_BYTES } else { &UNLOCKED_BYTES }
    }

    fn address(&self) -> *mut c_void {
        self.start.as_ptr().cast()
    }

    /// Number of words.
    pub fn len_words(&self) -> usize {
        self.words
    }

    /// Number of bytes: eight for each word.
    pub fn len_bytes(&self) -> usize {
        self.words * WORD_BYTES
    }

    /// Whether the kernel promised never to swap these words out.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// The words, in the machine's byte order.
    pub fn as_words(&self) -> &[u64] {
        // SAFETY: the mapping holds `words` initialised (zero or written) u64, is page-aligned, lives
        // as long as `self`, and `&self` excludes writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// The words, for writing.
    pub fn as_words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `as_words`, and `&mut self` makes this the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.words) }
    }

    /// The bytes as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: as in `as_words`; u8 has no alignment and every byte pattern is valid.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len_bytes()) }
    }

    /// The bytes as they lie in memory, for writing. After writing little-endian words from a wire, call
    /// [`Self::from_little_endian`].
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_words_mut`; every byte pattern is a valid u64.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len_bytes()) }
    }

    /// Turns bytes written in little-endian order into words of this machine's order.
    pub fn from_little_endian(&mut self) {
        if cfg!(target_endian = "big") {
            for word in self.as_words_mut() {
                *word = u64::from_le(*word);
            }
        }
    }
}

impl fmt::Debug for LockedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockedWords({} words, locked: {})", self.words, self.locked)
    }
}

impl Drop for LockedWords {
    fn drop(&mut self) {
        self.wipe();
        self.counter().fetch_sub(self.len_bytes() as u64, Ordering::Relaxed);
        // SAFETY: exactly our mapping, and no borrow of it outlives `self`. Unmapping also unlocks.
        if let Err(errno) = unsafe { munmap(self.address(), self.len_bytes()) } {
            tracing::error!(%errno, "wiped pool memory could not be unmapped");
        }
    }
}

/// Raises the soft limit on locked memory to the hard one, once in this process.
fn raise_soft_limit() {
    RAISE_LIMIT.call_once(|| {
        let limit = getrlimit(Resource::Memlock);
        if limit.current != limit.maximum {
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            if let Err(errno) = setrlimit(Resource::Memlock, raised) {
                tracing::debug!(%errno, "the soft limit on locked memory cannot be raised");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags and sizes that the kernel reports for the mapping that starts at `address`.
    fn smaps_entry(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut found = String::new();
        let mut inside = false;
        for line in smaps.lines() {
            let first = line.split(' ').next().unwrap_or_default();
            if let Some((from, to)) = first.split_once('-')
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&address);
            }
            if inside {
                found.push_str(line);
                found.push('\n');
            }
        }
        found
    }

    #[test]
    fn words_and_bytes_are_two_views_of_one_zeroed_region() {
        let mut words = LockedWords::zeroed(1000).unwrap();
        assert_eq!((words.len_words(), words.len_bytes()), (1000, 8000));
        assert!(words.as_words().iter().all(|word| *word == 0));
        words.as_bytes_mut()[8..16].copy_from_slice(&0x0102_0304_0506_0708_u64.to_le_bytes());
        words.from_little_endian();
        assert_eq!(words.as_words()[1], 0x0102_0304_0506_0708);
        assert_eq!(words.as_bytes().len(), 8000);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(matches!(LockedWords::zeroed(0), Err(LockedError::Size(0))));
        assert!(matches!(LockedWords::zeroed(usize::MAX), Err(LockedError::Size(_))));
        assert!(matches!(LockedWords::zeroed(usize::MAX / 8), Err(LockedError::Size(_))));
    }

    #[test]
    fn regions_stay_out_of_core_dumps_and_forks_and_report_their_lock_truthfully() {
        let words = LockedWords::zeroed(1 << 14).unwrap();
        let entry = smaps_entry(words.as_words().as_ptr() as usize);
        let flags = entry.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.contains(" dd"), "no dontdump in {flags}");
        assert!(flags.contains(" dc"), "no dontfork in {flags}");
        assert_eq!(flags.contains(" lo"), words.is_locked(), "{flags}");
        assert!(lock_report().locked_bytes + lock_report().unlocked_bytes >= 1 << 17);
    }

    #[test]
    fn the_wipe_of_drop_leaves_no_word() {
        let mut words = LockedWords::zeroed(4096).unwrap();
        words.as_words_mut().fill(u64::MAX);
        words.wipe();
        assert!(words.as_words().iter().all(|word| *word == 0));
    }

    #[test]
    fn debug_shows_sizes_only() {
        let mut words = LockedWords::zeroed(2).unwrap();
        words.as_words_mut().fill(0xabab_abab_abab_abab);
        let text = format!("{words:?}");
        assert!(text.starts_with("LockedWords(2 words"), "{text}");
        assert!(!text.contains("ab") && !text.contains("123"), "{text}");
    }
}
