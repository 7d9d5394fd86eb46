//! A WebSocket inside TLS: the carrier of a session.
//!
//! One binary message fills one TLS record: the caller writes its bytes straight into the record's plaintext, behind room
//! for the WebSocket header, and `send_message` writes the header, masks in place and seals.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Waker};

use ech_workers_tls::TlsStream;
use ech_workers_websocket::{self as websocket, Decoder, OpCode, Role};
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::TcpStream;

/// The longest header of a message that fits a record (RFC 6455 section 5.2: 2 bytes, a 16-bit length, a mask).
const fn header_room(role: Role) -> usize {
    match role {
        Role::Client => 8,
        Role::Server => 4,
    }
}

/// Masking keys, drawn from the system in blocks: unpredictable (RFC 6455 section 10.3) without a system call a message.
struct MaskingKeys {
    block: [u8; 256],
    next: usize,
}

impl MaskingKeys {
    const fn new() -> Self {
        Self {
            block: [0; 256],
            next: 256,
        }
    }

    fn draw(&mut self) -> io::Result<[u8; 4]> {
        if self.next == self.block.len() {
            getrandom::fill(&mut self.block)
                .map_err(|error| io::Error::other(error.to_string()))?;
            self.next = 0;
        }
        let mut key = [0; 4];
        key.copy_from_slice(&self.block[self.next..self.next + 4]);
        self.next += 4;
        Ok(key)
    }
}

/// Takes the pacing off a session's TCP connection if that is on loopback.
///
/// A congestion control that paces (BBR, where it is the system's default) uses a timer for each few segments. On loopback that
/// is all it does: without it the sender of eight streams takes an eighth less CPU time. On every other path the system's
/// choice stands.
pub(crate) fn unpace_loopback(tcp: &TcpStream, peer: SocketAddr) {
    #[cfg(target_os = "linux")]
    if peer.ip().to_canonical().is_loopback() {
        // Nothing depends on it but cost.
        let _ = SockRef::from(tcp).set_tcp_congestion(b"reno");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (tcp, peer);
}

/// The sending half's state: what has been put into the record that is being filled.
pub(crate) struct Outgoing {
    role: Role,
    keys: MaskingKeys,
    used: usize,
}

impl Outgoing {
    /// The free plaintext of the message being filled.
    pub(crate) fn space<'a>(&self, tls: &'a mut TlsStream) -> &'a mut [u8] {
        &mut tls.record()[header_room(self.role) + self.used..]
    }

    /// The spaces of the next messages, at most `most`, when none is being filled. Each but the last is to be filled whole.
    pub(crate) fn spaces<'a>(
        &self,
        tls: &'a mut TlsStream,
        most: usize,
    ) -> impl Iterator<Item = &'a mut [u8]> {
        let room = header_room(self.role);
        tls.records(most).map(move |record| &mut record[room..])
    }

    /// Says that `n` more bytes of `space` belong to the message.
    pub(crate) fn add(&mut self, n: usize) {
        self.used += n;
    }

    /// Bytes in the message being filled.
    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    /// Puts the header before the filled bytes, masks them and seals the record.
    pub(crate) fn send(&mut self, tls: &mut TlsStream, opcode: OpCode) -> io::Result<()> {
        let room = header_room(self.role);
        let length = self.used;
        self.used = 0;
        let mask = match self.role {
            Role::Client => Some(self.keys.draw()?),
            Role::Server => None,
        };
        let record = tls.unsealed();
        if record.len() < room + length {
            return Err(io::Error::other("a message was lost while it was filled"));
        }
        let header = websocket::header_len(self.role, length);
        if header < room {
            record.copy_within(room..room + length, header);
        }
        websocket::encode_header(record, opcode, true, length, mask);
        if let Some(key) = mask {
            websocket::mask(&mut record[header..header + length], key, 0);
        }
        tls.seal(header + length)
    }

    /// Sends `payload` (at most one record) as a message of its own; the message being filled must be empty.
    pub(crate) fn send_whole(
        &mut self,
        tls: &mut TlsStream,
        opcode: OpCode,
        payload: &[u8],
    ) -> io::Result<()> {
        debug_assert_eq!(self.used, 0);
        let space = self.space(tls);
        let n = payload.len().min(space.len());
        space[..n].copy_from_slice(&payload[..n]);
        self.add(n);
        self.send(tls, opcode)
    }
}

/// A WebSocket inside TLS, after the opening handshake.
pub(crate) struct Link {
    pub(crate) tls: TlsStream,
    pub(crate) decoder: Decoder,
    pub(crate) outgoing: Outgoing,
    /// Bytes that came behind the opening handshake.
    pub(crate) early: Vec<u8>,
}

impl Link {
    pub(crate) fn new(tls: TlsStream, role: Role, early: Vec<u8>) -> Self {
        Self {
            tls,
            decoder: Decoder::new(role),
            outgoing: Outgoing {
                role,
                keys: MaskingKeys::new(),
                used: 0,
            },
            early,
        }
    }

    /// Nothing has come, not even an end: a connection that waited for its use is still good, as far as we know.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.early.is_empty()
            && self
                .tls
                .poll_open(&mut Context::from_waker(Waker::noop()))
                .is_pending()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_connection_on_loopback_is_taken_from_the_systems_congestion_control() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let tcp = TcpStream::connect(peer).await.unwrap();
        let control = || {
            let name = SockRef::from(&tcp).tcp_congestion().unwrap();
            String::from_utf8(name)
                .unwrap()
                .trim_end_matches('\0')
                .to_owned()
        };
        let system = control();
        unpace_loopback(&tcp, "192.0.2.1:443".parse().unwrap());
        assert_eq!(control(), system);
        unpace_loopback(&tcp, peer);
        assert_eq!(control(), "reno");
    }
}
