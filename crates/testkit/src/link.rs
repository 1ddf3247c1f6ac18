//! A link that can be cut: a TCP forwarder between two daemons.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Forwards connections to one port until it is cut. When it is dropped, its port is free again.
pub struct TcpLink {
    port: u16,
    state: Arc<Mutex<State>>,
    listening: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    is_over: bool,
    open: Vec<TcpStream>,
}

impl TcpLink {
    /// Listens at `port` of the loopback and forwards to `target`.
    pub fn start(port: u16, target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let listening = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.lock().unwrap().is_over {
                    break;
                }
                let _ = forward(client, target, &shared);
            }
        });
        Self { port, state, listening: Some(listening) }
    }

    /// Ends every connection and lets none through.
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn heal(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.cut();
        self.state.lock().unwrap().is_over = true;
        // Wakes the listener, so that it ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.listening.take().unwrap().join();
    }
}

fn forward(client: TcpStream, target: u16, state: &Mutex<State>) -> io::Result<()> {
    let mut state = state.lock().unwrap();
    if state.is_cut {
        return Ok(());
    }
    let server = TcpStream::connect(("127.0.0.1", target))?;
    state.open.extend([client.try_clone()?, server.try_clone()?]);
    drop(state);
    for (mut from, mut to) in
        [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)]
    {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
