//! Unix: pairs of Unix sockets, descriptors, and sockets from systemd.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use socket2::SockRef;

/// The program's end of a socket pair.
pub type OwnedLocal = OwnedFd;
/// Its number.
pub type RawLocal = RawFd;
/// The driver's end.
pub(crate) type Ours = tokio::net::UnixStream;

/// ENFILE and EMFILE, the same on every Unix that this runs on: there is no descriptor left.
pub(crate) const EXHAUSTED: [i32; 2] = [23, 24];

/// Hands the socket to whoever takes its number.
pub fn release(socket: OwnedLocal) -> RawLocal {
    socket.into_raw_fd()
}

/// Connected sockets, ours without blocking. Each end may hold `send_buffer` bytes for the other.
pub(crate) fn socket_pair(send_buffer: usize) -> io::Result<(Ours, OwnedLocal)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    for end in [&ours, &theirs] {
        // Best effort: with the default both sides would take turns over a few records.
        let _ = SockRef::from(end).set_send_buffer_size(send_buffer);
    }
    Ok((Ours::from_std(ours)?, theirs.into()))
}

/// The first socket that the service manager hands over (sd_listen_fds(3)).
pub(crate) fn activated() -> io::Result<Option<TcpListener>> {
    listenfd::ListenFd::from_env().take_tcp_listener(0)
}

/// Where the program's end was when it was handed out.
#[derive(Debug)]
pub(crate) struct Peer {
    number: RawFd,
    /// What the system calls that socket, as no other one while it exists.
    name: Option<PathBuf>,
}

impl Peer {
    pub(crate) fn of(theirs: &OwnedLocal) -> Self {
        let number = theirs.as_raw_fd();
        Self {
            number,
            name: name_of(number),
        }
    }

    /// Sends a byte that is never read, as if the program had: a Unix socket that is closed with something unread gives its peer
    /// ECONNRESET.
    ///
    /// Nothing happens when the program has closed its end, or moved it to another descriptor, and on systems without
    /// /proc.
    pub(crate) fn break_off(&self) {
        if self.name.is_none() || name_of(self.number) != self.name {
            return;
        }
        // SAFETY: The descriptor need not be open, or the same as before, for what is done with it: fcntl(F_DUPFD) fails,
        // or makes another descriptor for whatever is there, which is looked at before it is used.
        #[allow(unsafe_code)]
        let number = unsafe { BorrowedFd::borrow_raw(self.number) };
        let Ok(end) = number.try_clone_to_owned() else {
            return;
        };
        if name_of(end.as_raw_fd()) == self.name {
            // A full buffer does as well: it is not read either.
            let _ = SockRef::from(&end).send_with_flags(&[0], DO_NOT_WAIT);
        } else {
            // Another file took the number this moment. Closing a descriptor of it would take its locks (fcntl(2)).
            let _ = end.into_raw_fd();
        }
    }
}

/// MSG_DONTWAIT and MSG_NOSIGNAL of Linux, which alone has the names below.
const DO_NOT_WAIT: i32 = 0x4040;

fn name_of(descriptor: RawFd) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()
}
