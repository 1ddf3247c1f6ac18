//! A proxy in front of a Postgres that loses a COMMIT, or the answer to one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the driver sends for `COMMIT`: a simple query.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// What the proxy has to lose.
#[derive(Default)]
struct Orders {
    commits: AtomicU32,
    answers: AtomicU32,
    refuses_after: AtomicBool,
    lost: AtomicU32,
}

/// The proxy. Ends with the test.
pub(super) struct Lossy {
    port: u16,
    orders: Arc<Orders>,
}

impl Lossy {
    pub(super) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let orders = Arc::<Orders>::default();
        let all = Arc::clone(&orders);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if all.refuses_after.load(Ordering::SeqCst) && all.lost.load(Ordering::SeqCst) > 0 {
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                tokio::spawn(carry(client, server, Arc::clone(&all)));
            }
        });
        Self { port, orders }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The next `count` COMMITs do not arrive, and their connections break.
    pub(super) fn lose_commits(&self, count: u32) {
        self.orders.commits.store(count, Ordering::SeqCst);
    }

    /// The next `count` COMMITs arrive, and their connections break before the answer does.
    pub(super) fn lose_the_answer_to_commits(&self, count: u32) {
        self.orders.answers.store(count, Ordering::SeqCst);
    }

    /// Whether to let nobody through after the first loss.
    pub(super) fn refuse_after_a_loss(&self, refuses: bool) {
        self.orders.refuses_after.store(refuses, Ordering::SeqCst);
    }

    /// Number of losses so far.
    pub(super) fn lost(&self) -> u32 {
        self.orders.lost.load(Ordering::SeqCst)
    }
}

fn take_one(orders: &AtomicU32) -> bool {
    orders.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

async fn carry(mut client: TcpStream, mut server: TcpStream, orders: Arc<Orders>) {
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            sent = client.read(&mut up) => {
                let Ok(length @ 1..) = sent else { return };
                let is_commit = up[..length].ends_with(COMMIT);
                if is_commit && take_one(&orders.commits) {
                    orders.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                server.write_all(&up[..length]).await.unwrap();
                if is_commit && take_one(&orders.answers) {
                    // The server has answered, so it is committed.
                    assert!(server.read(&mut down).await.unwrap() > 0);
                    orders.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
            answered = server.read(&mut down) => {
                let Ok(length @ 1..) = answered else { return };
                if client.write_all(&down[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
