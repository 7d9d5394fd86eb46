//! Windows: pairs of TCP sockets on loopback.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::windows::io::{IntoRawSocket as _, OwnedSocket, RawSocket};

use socket2::SockRef;

/// The program's end of a socket pair.
pub type OwnedLocal = OwnedSocket;
/// Its number.
pub type RawLocal = RawSocket;
/// The driver's end.
pub(crate) type Ours = tokio::net::TcpStream;

/// How many foreign connections may come in between.
const STRANGERS: usize = 16;

/// ERROR_TOO_MANY_OPEN_FILES and WSAEMFILE: there is no handle left.
pub(crate) const EXHAUSTED: [i32; 2] = [4, 10024];

/// Hands the socket to whoever takes its number.
pub fn release(socket: OwnedLocal) -> RawLocal {
    socket.into_raw_socket()
}

/// Connected sockets, ours without blocking. Each end may hold `send_buffer` bytes for the other.
pub(crate) fn socket_pair(send_buffer: usize) -> io::Result<(Ours, OwnedLocal)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let theirs = TcpStream::connect(listener.local_addr()?)?;
    let address = theirs.local_addr()?;
    // Any program of the machine may connect to the port while it is open: only the other end of ours is taken.
    for _ in 0..STRANGERS {
        let (ours, from) = listener.accept()?;
        if from != address {
            continue;
        }
        ours.set_nonblocking(true)?;
        for end in [&ours, &theirs] {
            end.set_nodelay(true)?;
            // Best effort: with the default both sides would take turns over a few records.
            let _ = SockRef::from(end).set_send_buffer_size(send_buffer);
        }
        return Ok((Ours::from_std(ours)?, theirs.into()));
    }
    Err(io::Error::other(
        "other programs connect to each port that is opened",
    ))
}

/// There is no such service manager.
pub(crate) fn activated() -> io::Result<Option<TcpListener>> {
    Ok(None)
}

/// The program's end: nothing can be done to it from here.
#[derive(Debug)]
pub(crate) struct Peer;

impl Peer {
    pub(crate) fn of(_: &OwnedLocal) -> Self {
        Self
    }

    /// The socket shows an ordinary end.
    pub(crate) fn break_off(&self) {}
}
