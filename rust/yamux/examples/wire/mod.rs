//! What both peers do with their socket: neither waits for it, and what it does not take is kept.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ech_workers_yamux::Connection;

/// Frames are kept small enough that streams take turns.
pub(crate) const FRAME_MAX: usize = 16 << 10;
/// How much may wait for the socket before no more is framed.
const WAITING_MAX: usize = 256 << 10;

pub(crate) struct Wire {
    socket: TcpStream,
    waiting: VecDeque<u8>,
    /// Nothing has come or gone in this turn.
    idle: bool,
}

impl Wire {
    pub(crate) fn connect(address: &str) -> std::io::Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            waiting: VecDeque::new(),
            idle: false,
        })
    }

    /// What has come; `None` when the peer has ended.
    pub(crate) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> std::io::Result<Option<&'a [u8]>> {
        let n = match self.socket.read(buffer) {
            Ok(0) => return Ok(None),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        };
        self.idle = n == 0;
        Ok(Some(&buffer[..n]))
    }

    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() > WAITING_MAX
    }

    #[allow(dead_code, reason = "one of the two programs asks")]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn push(&mut self, bytes: impl IntoIterator<Item = u8>) {
        self.waiting.extend(bytes);
    }

    /// Sends what waits, behind it the control frames that are due. False when the peer has ended.
    pub(crate) fn send(
        &mut self,
        connection: &mut Connection,
        now: Instant,
    ) -> Result<bool, Box<dyn Error>> {
        while let Some(header) = connection.poll_control(now) {
            self.waiting.extend(header);
        }
        while !self.waiting.is_empty() {
            match self.socket.write(self.waiting.as_slices().0) {
                Ok(n) => {
                    self.waiting.drain(..n);
                    self.idle = false;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        if self.idle {
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(true)
    }
}
