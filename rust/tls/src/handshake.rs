//! The handshake: BoringSSL on an in-memory wire, the socket around it.

use std::io::{self, Read, Write};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use ech_workers_boringssl::error::ErrorStack;
use ech_workers_boringssl::ex_data::Index;
use ech_workers_boringssl::ssl::{
    self, Ssl, SslContextBuilder, SslMode, SslRef, SslStream, SslVersion,
};
use tokio::net::TcpStream;

use crate::buffer::READ_CAPACITY;
use crate::error::HandshakeError;
use crate::profile::extension;
use crate::record::{MAX_PLAINTEXT, Secret, Suite, TrafficKey};
use crate::wire::Reader;

/// Handshake messages (RFC 8446 section 4).
const SERVER_HELLO: u8 = 2;
const ENCRYPTED_EXTENSIONS: u8 = 8;

/// One read of the socket. Server flights are 2 to 5 KiB.
const CHUNK: usize = 16 * 1024;

/// No flight of ours comes near it: a hello of 2 KiB, a certificate chain of at most 100 KiB.
const MAX_OUTPUT: usize = 256 * 1024;

/// What the peer may send in a whole handshake. BoringSSL caps single messages, not their number.
const MAX_INPUT: usize = 512 * 1024;

/// The bytes between BoringSSL and the socket.
#[derive(Default)]
pub(crate) struct Wire {
    input: Vec<u8>,
    taken: usize,
    output: Vec<u8>,
}

impl Wire {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.input().extend_from_slice(bytes);
    }

    fn unread(&self) -> &[u8] {
        self.input.get(self.taken..).unwrap_or_default()
    }

    /// What BoringSSL has written.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Where the next bytes of the socket go.
    fn input(&mut self) -> &mut Vec<u8> {
        self.input.drain(..std::mem::take(&mut self.taken));
        self.input.reserve(CHUNK);
        &mut self.input
    }

    /// Takes what BoringSSL has not read.
    pub(crate) fn take_unread(&mut self) -> Vec<u8> {
        let mut input = std::mem::take(&mut self.input);
        input.drain(..std::mem::take(&mut self.taken));
        input
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.unread().read(buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.taken += length;
        Ok(length)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.output.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("handshake output too long"));
        }
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a connection's callbacks need and leave for it.
#[derive(Default)]
pub(crate) struct Observed {
    /// Under which key this connection's session tickets are kept.
    session_key: Option<Box<str>>,
    client_secret: Option<Secret>,
    server_secret: Option<Secret>,
    /// The peer's record_size_limit (RFC 8449), where it sent one.
    record_size_limit: Option<u16>,
    /// The group in the server's last ServerHello or HelloRetryRequest.
    group: Option<u16>,
}

/// A connection's [`Observed`], shared with the callbacks.
#[derive(Clone, Default)]
pub(crate) struct Observer(Arc<Mutex<Observed>>);

/// Where a connection keeps its observer; `None` if BoringSSL has no slot for it.
static OBSERVER: LazyLock<Option<Index<Ssl, Observer>>> =
    LazyLock::new(|| Ssl::new_ex_index().ok());

impl Observer {
    /// Puts the callbacks into a context. Every context that a connection may be switched to needs them.
    pub(crate) fn install(context: &mut SslContextBuilder) {
        // The key log is the one stable way to the traffic secrets; it is called inside the handshake, by the thread
        // that drives it, and the lines go nowhere else. They are read where BoringSSL wrote them, and it wipes all
        // memory that it frees, so no copy of them is left.
        context.set_keylog_callback(|ssl, line| {
            if let Some(observer) = OBSERVER.as_ref().and_then(|index| ssl.ex_data(*index)) {
                observer.log(line);
            }
        });
    }

    /// Attaches an observer to a connection.
    pub(crate) fn attach(
        ssl: &mut SslRef,
        client: bool,
        session_key: Option<&str>,
    ) -> Result<Self, HandshakeError> {
        let observer = Self::default();
        observer.lock().session_key = session_key.map(Box::from);
        let index = OBSERVER
            .as_ref()
            .ok_or_else(|| HandshakeError::Tls("no extra data index".to_owned()))?;
        ssl.set_ex_data(*index, observer.clone());
        if client {
            let seen = observer.clone();
            ssl.set_msg_callback(move |_, message| {
                if message.is_written() {
                    return;
                }
                match message.handshake_type() {
                    Some(SERVER_HELLO) => seen.server_hello(message.bytes()),
                    Some(ENCRYPTED_EXTENSIONS) => seen.encrypted_extensions(message.bytes()),
                    _ => {}
                }
            });
        }
        Ok(observer)
    }

    /// The session key of a connection.
    pub(crate) fn session_key(ssl: &SslRef) -> Option<Box<str>> {
        let observer = ssl.ex_data(*OBSERVER.as_ref()?)?;
        observer.lock().session_key.clone()
    }

    /// The group that the server of a connection has chosen, whether or not it was offered.
    fn chosen_group(ssl: &SslRef) -> Option<u16> {
        ssl.ex_data(*OBSERVER.as_ref()?)?.lock().group
    }

    fn log(&self, line: &str) {
        let mut words = line.split(' ');
        let (Some(label), Some(secret)) = (words.next(), words.nth(1)) else {
            return;
        };
        let mut observed = self.lock();
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => observed.client_secret = Secret::from_hex(secret),
            "SERVER_TRAFFIC_SECRET_0" => observed.server_secret = Secret::from_hex(secret),
            _ => {}
        }
    }

    /// BoringSSL refuses a group that it cannot do without saying which.
    fn server_hello(&self, message: &[u8]) {
        let group = (|| {
            let mut reader = Reader::new(message.get(4..)?);
            // Version and random, the session id's echo, the suite and no compression (RFC 8446 section 4.1.3).
            reader.take(34)?;
            reader.vector8()?;
            reader.take(3)?;
            // In a HelloRetryRequest the group is all of it, otherwise it comes first.
            find(reader.vector16()?, extension::KEY_SHARE)?.u16()
        })();
        self.lock().group = group;
    }

    /// BoringSSL takes the server's record_size_limit without a word; the record layer must keep it.
    fn encrypted_extensions(&self, message: &[u8]) {
        let limit = (|| {
            let mut reader = Reader::new(message.get(4..)?);
            find(reader.vector16()?, extension::RECORD_SIZE_LIMIT)?.u16()
        })();
        self.lock().record_size_limit = limit;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Observed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys that BoringSSL has set up, once the handshake is done.
    pub(crate) fn keys(&self, ssl: &SslRef, client: bool) -> Result<Keys, HandshakeError> {
        let missing = || HandshakeError::Tls("no traffic secrets".to_owned());
        let suite = ssl
            .current_cipher()
            .and_then(|cipher| Suite::from_id(cipher.protocol_id()))
            .ok_or_else(missing)?;
        let mut observed = self.lock();
        let client_secret = observed.client_secret.take().ok_or_else(missing)?;
        let server_secret = observed.server_secret.take().ok_or_else(missing)?;
        let (read, write) = if client {
            (server_secret, client_secret)
        } else {
            (client_secret, server_secret)
        };
        let read_sequence = ech_workers_boringssl::read_sequence(ssl);
        let write_sequence = ech_workers_boringssl::write_sequence(ssl);
        Ok(Keys {
            read: TrafficKey::new(suite, read, read_sequence)?,
            write: TrafficKey::new(suite, write, write_sequence)?,
            // The limit counts the inner content type (RFC 8449 section 4); less than 64 is not allowed.
            max_plaintext: observed
                .record_size_limit
                .map_or(MAX_PLAINTEXT, |limit| usize::from(limit.max(64)) - 1)
                .min(MAX_PLAINTEXT),
            client,
        })
    }
}

/// The body of one extension in a list of them.
fn find<'a>(mut list: Reader<'a>, id: u16) -> Option<Reader<'a>> {
    loop {
        let found = list.u16()?;
        let body = list.vector16()?;
        if found == id {
            return Some(body);
        }
    }
}

/// What the record layer needs of a handshake.
pub(crate) struct Keys {
    pub(crate) read: TrafficKey,
    pub(crate) write: TrafficKey,
    pub(crate) max_plaintext: usize,
    /// Whether they are the client's.
    pub(crate) client: bool,
}

/// What client and server contexts have in common.
pub(crate) fn configure(context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    context.set_mode(
        SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE | SslMode::AUTO_RETRY,
    );
    context.set_max_proto_version(Some(SslVersion::TLS1_3))?;
    Observer::install(context);
    Ok(())
}

/// Drives a handshake to its end. `output` is sent first; `record` sees every byte that comes in.
pub(crate) async fn drive(
    tls: &mut SslStream<Wire>,
    tcp: &TcpStream,
    mut output: Vec<u8>,
    step: impl Fn(&mut SslStream<Wire>) -> Result<(), ssl::Error>,
    mut record: impl FnMut(&[u8]),
) -> Result<(), HandshakeError> {
    let mut received = 0;
    loop {
        send(tcp, &output, received).await?;
        let input = tls.get_mut().input();
        let length = receive(tcp, input, received).await?;
        let (_, new) = input.split_at(input.len().saturating_sub(length));
        record(new);
        received += length;
        let result = step(tls);
        if received > MAX_INPUT || tls.get_ref().unread().len() > READ_CAPACITY {
            return Err(HandshakeError::Tls("the handshake is too long".to_owned()));
        }
        output = tls.get_mut().take_output();
        match result {
            Ok(()) => return send(tcp, &output, received).await,
            Err(error) if error.would_block() => {}
            Err(error) => {
                // An alert for the peer, if it can still be told.
                let _ = tcp.try_write(&output);
                discard_received(tcp);
                let group = Observer::chosen_group(tls.ssl());
                return Err(HandshakeError::from_boringssl(&error, tls.ssl(), group));
            }
        }
    }
}

async fn send(tcp: &TcpStream, mut bytes: &[u8], received: usize) -> Result<(), HandshakeError> {
    while !bytes.is_empty() {
        tcp.writable().await.map_err(HandshakeError::Io)?;
        match tcp.try_write(bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(broken(error, received)),
        }
    }
    Ok(())
}

async fn receive(
    tcp: &TcpStream,
    buffer: &mut Vec<u8>,
    received: usize,
) -> Result<usize, HandshakeError> {
    loop {
        tcp.readable().await.map_err(HandshakeError::Io)?;
        match tcp.try_read_buf(buffer) {
            Ok(0) if received == 0 => return Err(HandshakeError::ResetAfterHello),
            Ok(0) => return Err(HandshakeError::Closed),
            Ok(length) => return Ok(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(broken(error, received)),
        }
    }
}

/// Takes what has come already and nobody will read. A socket that is closed with something unread resets the connection,
/// and the alert that was just sent may be lost by that.
pub(crate) fn discard_received(tcp: &TcpStream) {
    let mut buffer = [0; 4096];
    for _ in 0..64 {
        if !matches!(tcp.try_read(&mut buffer), Ok(1..)) {
            return;
        }
    }
}

fn broken(error: io::Error, received: usize) -> HandshakeError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe if received == 0 => {
            HandshakeError::ResetAfterHello
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => HandshakeError::Closed,
        _ => HandshakeError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(message: &[u8]) -> Option<u16> {
        let observer = Observer::default();
        observer.encrypted_extensions(message);
        let observed = observer.lock();
        observed.record_size_limit
    }

    #[test]
    fn the_servers_record_size_limit_is_found_among_its_extensions() {
        let message = [
            8, 0, 0, 17, 0, 15, 0, 16, 0, 5, 0, 3, 2, b'h', b'2', 0, 28, 0, 2, 0x04, 0x01,
        ];
        assert_eq!(limit(&message), Some(0x0401));
        assert_eq!(limit(&message[..15]), None);
        assert_eq!(limit(&[8, 0, 0, 2, 0, 0]), None);
        assert_eq!(limit(&[8]), None);
    }
}
