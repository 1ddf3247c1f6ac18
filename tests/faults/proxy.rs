//! One link of the network, with faults: a TCP proxy that does not look at the bytes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::random::Choices;

/// From the client to the server behind the proxy, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    There,
    Back,
}

/// What the link does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Everything arrives this much later.
    Delay(Duration),
    /// Connections are refused and open ones are reset.
    Cut,
    /// Bytes of one direction are discarded, the other direction works. A connection that lost bytes never
    /// works again, and nobody is told.
    Blackhole(Direction),
    /// Bytes of one direction wait until the fault is over, then all arrive.
    Stall(Direction),
    /// Every connection ends after this many bytes in either direction.
    Truncate(usize),
    /// A few bytes at a time.
    Drip,
    /// A long line that loses packets. Everything arrives this much later, at any rate. One segment in
    /// [`LOST_OF`] is lost and arrives two round trips later; what follows it waits, as with TCP.
    Far(Duration),
}

/// One segment in this many is lost.
const LOST_OF: u64 = 100;
const SEGMENT_BYTES: usize = 1448;
/// Chunks on the line at once, in one direction.
const FAR_CHUNKS: usize = 256;

const CHUNK_BYTES: usize = 16 * 1024;
const DRIP_BYTES: usize = 256;
const DRIP_PAUSE: Duration = Duration::from_millis(20);

/// Seeds of the losses, one for each direction of a connection.
static NEXT_FAR: AtomicU64 = AtomicU64::new(1);

/// A proxy in front of one server, for one client.
pub(crate) struct Link {
    pub(crate) name: String,
    mode: watch::Sender<Mode>,
}

impl Link {
    /// Listens at `at` and connects to `to`, in tasks of the current runtime.
    pub(crate) fn start(name: String, at: SocketAddr, to: SocketAddr) -> Self {
        let (mode, seen) = watch::channel(Mode::Pass);
        tokio::spawn(serve(at, to, seen));
        Self { name, mode }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn serve(at: SocketAddr, to: SocketAddr, mut mode: watch::Receiver<Mode>) {
    loop {
        if mode.wait_for(|mode| *mode != Mode::Cut).await.is_err() {
            return;
        }
        let Ok(listener) = TcpListener::bind(at).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let for_connections = mode.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        tokio::spawn(connection(client, to, for_connections.clone()));
                    }
                }
                cut = mode.wait_for(|mode| *mode == Mode::Cut) => {
                    if cut.is_err() {
                        return;
                    }
                    break;
                }
            }
        }
    }
}

async fn connection(client: TcpStream, to: SocketAddr, mut mode: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(to).await else {
        let _ = client.set_zero_linger();
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
        // A dropped stream resets its connection, as a cut link or a dead process does.
        let _ = stream.set_zero_linger();
    }
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let (there, back) = (mode.clone(), mode.clone());
    // Both ends are dropped together: whatever ends one direction ends the connection.
    tokio::select! {
        () = pump(client_reads, server_writes, Direction::There, there) => {}
        () = pump(server_reads, client_writes, Direction::Back, back) => {}
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// Carries bytes until an end or an error, through a queue that simulates the line.
async fn pump_far(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration) {
    let (line, mut arriving) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(FAR_CHUNKS);
    let send = async move {
        let mut choices = Choices::new(1, NEXT_FAR.fetch_add(1, Ordering::Relaxed));
        let mut arrives = Instant::now();
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            arrives = arrives.max(Instant::now() + one_way);
            for segment in buffer[..count].chunks(SEGMENT_BYTES) {
                if choices.between(1, LOST_OF) == 1 {
                    arrives += 4 * one_way;
                }
                if line.send((arrives, segment.to_vec())).await.is_err() {
                    return;
                }
            }
        }
    };
    let receive = async move {
        while let Some((arrives, bytes)) = arriving.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(send, receive);
}

/// Carries bytes until an end, an error or a fault.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut mode: watch::Receiver<Mode>,
) {
    // A connection that was opened on a far link stays that way.
    let at_first = *mode.borrow();
    if let Mode::Far(one_way) = at_first {
        return pump_far(from, to, one_way).await;
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut is_lost = false;
    let mut since_truncation = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if mode.wait_for(|mode| *mode != Mode::Stall(direction)).await.is_err() {
            return;
        }
        let now = *mode.borrow();
        let mut bytes = &buffer[..count];
        match now {
            Mode::Delay(delay) => sleep(delay).await,
            Mode::Blackhole(dark) if dark == direction => is_lost = true,
            Mode::Truncate(after) => {
                since_truncation += count;
                if since_truncation >= after {
                    let rest = count.saturating_sub(since_truncation - after);
                    let _ = to.write_all(&bytes[..rest]).await;
                    break;
                }
            }
            Mode::Drip => {
                while let Some((few, more)) = bytes.split_at_checked(DRIP_BYTES) {
                    if *mode.borrow() != Mode::Drip || to.write_all(few).await.is_err() {
                        break;
                    }
                    bytes = more;
                    sleep(DRIP_PAUSE).await;
                }
            }
            Mode::Pass | Mode::Cut | Mode::Far(_) | Mode::Stall(_) | Mode::Blackhole(_) => {}
        }
        if !is_lost && to.write_all(bytes).await.is_err() {
            break;
        }
    }
    // On a regular end, lets what was sent before still arrive.
    let _ = to.shutdown().await;
}
