//! A WebSocket inside TLS: the carrier of a session.
//!
//! The session writes straight into the plaintext of the next TLS record, behind room for the WebSocket header. When a
//! message is committed, its header is written, its payload masked in place, and the record is sealed when it is full or when
//! everything goes out. So what is sent in one turn shares a record where it fits.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use ech_workers_session::{Carrier, CloseCode, Closed, Incoming};
use ech_workers_tls::{RECORD_MAX, TlsStream};
use ech_workers_websocket::{self as websocket, Decoder, OpCode, Role};
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::failure::{Code, Failure, Layer};

/// Below this much room a record is sealed rather than filled with another message.
const ROOM_MIN: usize = 1024;
/// Records that one message fills for a peer that likes long messages. A 16-bit length can say how long it is.
const LONG_MESSAGE: usize = 4;
const _: () = assert!(LONG_MESSAGE * RECORD_MAX - header_room(Role::Client) <= 0xffff);
/// Pongs that wait to be sent. A peer that pings faster than it reads gets answers to its latest pings only, as RFC 6455
/// section 5.5.3 allows.
const PONGS_MAX: usize = 8;

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
        if self.next >= self.block.len() {
            getrandom::fill(&mut self.block)
                .map_err(|error| io::Error::other(error.to_string()))?;
            self.next = 0;
        }
        let mut key = [0; 4];
        if let Some(drawn) = self.block.get(self.next..self.next + 4) {
            key.copy_from_slice(drawn);
        }
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
        // Only the cost depends on it.
        let _ = SockRef::from(tcp).set_tcp_congestion(b"reno");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (tcp, peer);
}

/// A frame of several records, whose header was sent.
#[derive(Debug, Clone, Copy)]
struct Unfinished {
    mask: Option<[u8; 4]>,
    /// Bytes of its payload that were sent.
    sent: usize,
    /// Bytes of its payload that are still to come.
    left: usize,
}

/// A WebSocket inside TLS, after the opening handshake.
pub(crate) struct WebSocket {
    tls: TlsStream,
    role: Role,
    decoder: Decoder,
    /// What came behind the opening handshake; decoded with the first call.
    early: Vec<u8>,
    early_is_decoded: bool,
    /// Where the contents of the records that were received last lie.
    records: Vec<Range<usize>>,
    keys: MaskingKeys,
    /// Bytes of the record being filled that are whole frames.
    framed: usize,
    /// Bytes of the message being filled behind them.
    filled: usize,
    /// The peer said that it takes one long message rather than many short ones.
    long_messages: bool,
    /// The frame that goes on in the next record.
    unfinished: Option<Unfinished>,
    /// Control frames, and control texts of simple mode, that wait for the next record.
    controls: VecDeque<(OpCode, Vec<u8>)>,
    /// What is left of the payload of one that goes over several records, for a peer that asks for tiny ones (RFC 8449).
    control_rest: Vec<u8>,
    /// The code of the goodbye, where what the peer did decides it.
    close_code: Option<u16>,
    closing: bool,
}

impl WebSocket {
    /// `early`: bytes that were received behind the opening handshake.
    pub(crate) fn new(tls: TlsStream, role: Role, early: Vec<u8>) -> Self {
        Self {
            tls,
            role,
            decoder: Decoder::new(role),
            early,
            early_is_decoded: false,
            records: Vec::new(),
            keys: MaskingKeys::new(),
            framed: 0,
            filled: 0,
            long_messages: false,
            unfinished: None,
            controls: VecDeque::new(),
            control_rest: Vec::new(),
            close_code: None,
            closing: false,
        }
    }

    /// The same WebSocket, with its socket registered with the runtime that this is called in.
    pub(crate) fn into_current_runtime(self) -> Result<Self, Failure> {
        let tls = self.tls.into_current_runtime().map_err(broken)?;
        Ok(Self { tls, ..self })
    }

    /// Sends what fills several records as one message, up to 64 KiB.
    pub(crate) fn with_long_messages(mut self) -> Self {
        self.long_messages = true;
        self
    }

    /// Writes the header before the frame being filled and masks it. `following`: bytes of its payload that the next records
    /// bring.
    fn end_frame(&mut self, opcode: OpCode, following: usize) -> io::Result<()> {
        let length = std::mem::take(&mut self.filled);
        let mask = match self.role {
            Role::Client => Some(self.keys.draw()?),
            Role::Server => None,
        };
        let whole = length + following;
        let header = websocket::header_len(self.role, whole);
        let message = self.payload(length, header_room(self.role), header)?;
        websocket::encode_header(message, opcode, true, whole, mask);
        if let Some(key) = mask {
            websocket::mask(message.get_mut(header..).unwrap_or_default(), key, 0);
        }
        if following > 0 {
            self.unfinished = Some(Unfinished {
                mask,
                sent: length,
                left: following,
            });
        }
        Ok(())
    }

    /// What is filled goes on with the frame that the record before began.
    fn continue_frame(&mut self, frame: Unfinished) -> io::Result<()> {
        let length = std::mem::take(&mut self.filled);
        let Some(left) = frame.left.checked_sub(length) else {
            return Err(lost_message());
        };
        let message = self.payload(length, 0, 0)?;
        if let Some(key) = frame.mask {
            websocket::mask(message, key, frame.sent);
        }
        self.unfinished = (left > 0).then_some(Unfinished {
            sent: frame.sent + length,
            left,
            ..frame
        });
        Ok(())
    }

    /// The `length` bytes that were filled behind `room`, with `header` bytes before them. They count as framed.
    fn payload(&mut self, length: usize, room: usize, header: usize) -> io::Result<&mut [u8]> {
        let start = self.framed;
        let Some(message) = self.tls.unsealed().get_mut(start..) else {
            return Err(lost_message());
        };
        if message.len() < room + length {
            return Err(lost_message());
        }
        if header < room {
            message.copy_within(room..room + length, header);
        }
        self.framed += header + length;
        let end = header + length;
        message.get_mut(..end).ok_or_else(lost_message)
    }

    /// Seals the record being filled, if there is one.
    fn seal(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.framed) {
            0 => Ok(()),
            length => self.tls.seal(length),
        }
    }

    /// Puts what waits in `controls` into the record being filled, as far as it fits. What fits no record goes over several.
    fn write_controls(&mut self) -> io::Result<()> {
        loop {
            let begun = !self.control_rest.is_empty();
            if !begun && (self.filled > 0 || self.unfinished.is_some()) {
                // Not within a message.
                return Ok(());
            }
            let length = match self.controls.front() {
                _ if begun => self.control_rest.len(),
                Some((_, payload)) => payload.len(),
                None => return Ok(()),
            };
            let room = self.space().len();
            if room == 0 || room < length && self.framed > 0 {
                if self.has_text() {
                    // Nothing may overtake it.
                    self.seal()?;
                }
                return Ok(());
            }
            if begun {
                let payload = std::mem::take(&mut self.control_rest);
                self.control_rest = self.fill_control(payload);
                if let Some(frame) = self.unfinished.take() {
                    self.continue_frame(frame)?;
                }
            } else if let Some((opcode, payload)) = self.controls.pop_front() {
                self.control_rest = self.fill_control(payload);
                self.end_frame(opcode, self.control_rest.len())?;
            }
            if !self.control_rest.is_empty() {
                self.seal()?;
            }
        }
    }

    /// A text waits.
    fn has_text(&self) -> bool {
        self.controls
            .iter()
            .any(|(opcode, _)| *opcode == OpCode::Text)
    }

    /// Fills the space with `payload`. Returns what it has no room for.
    fn fill_control(&mut self, mut payload: Vec<u8>) -> Vec<u8> {
        let space = self.space();
        let length = payload.len().min(space.len());
        let rest = payload.split_off(length);
        space
            .iter_mut()
            .zip(&payload)
            .for_each(|(to, from)| *to = *from);
        self.filled = length;
        rest
    }

    /// Decodes what lies at `range` of `buffer`.
    fn decode(
        decoder: &mut Decoder,
        buffer: &mut [u8],
        range: Range<usize>,
        incoming: &mut Vec<Incoming>,
        mut control: impl FnMut(Control),
    ) -> Result<(), Failure> {
        let mut at = range.start;
        while let Some(input) = buffer.get_mut(at..range.end)
            && !input.is_empty()
        {
            let (used, event) = decoder.decode(input).map_err(|error| {
                control(Control::Fault(error.close_code()));
                Failure::new(
                    Layer::WebSocket,
                    Code::WebSocketProtocol,
                    format!("the peer broke RFC 6455: {error}"),
                )
            })?;
            match event {
                Some(websocket::Event::Data { kind, range, end }) => {
                    let range = at + range.start..at + range.end;
                    incoming.push(match kind {
                        websocket::MessageKind::Binary => Incoming::Bytes(range),
                        websocket::MessageKind::Text => Incoming::Text { range, end },
                    });
                }
                Some(websocket::Event::Ping(payload)) => control(Control::Pong(payload.to_vec())),
                Some(websocket::Event::Pong(payload)) => {
                    incoming.push(Incoming::Pong(payload.to_vec()));
                }
                Some(websocket::Event::Close(reason)) => {
                    let code = reason.as_ref().map(|reason| reason.code);
                    control(Control::Closed(code));
                    incoming.push(Incoming::Closed(Closed {
                        goodbye: true,
                        code,
                        description: reason.map(|reason| reason.to_string()).unwrap_or_default(),
                    }));
                }
                None => {}
            }
            at += used;
        }
        Ok(())
    }
}

/// Puts a control frame behind those that wait. Of our own pings only the last one waits: no answer to another one counts.
fn queue(controls: &mut VecDeque<(OpCode, Vec<u8>)>, opcode: OpCode, payload: Vec<u8>) {
    let alike = || controls.iter().filter(|(waiting, _)| *waiting == opcode);
    let superseded = match opcode {
        OpCode::Ping => alike().count() > 0,
        OpCode::Pong => alike().count() >= PONGS_MAX,
        _ => false,
    };
    if superseded && let Some(first) = controls.iter().position(|(waiting, _)| *waiting == opcode) {
        controls.remove(first);
    }
    controls.push_back((opcode, payload));
}

/// What a control frame, or a frame that is none, asks of the outgoing direction.
enum Control {
    /// Answer a ping.
    Pong(Vec<u8>),
    /// The peer closed with this code.
    Closed(Option<u16>),
    /// The peer broke the protocol; this is the code to close with.
    Fault(u16),
}

fn lost_message() -> io::Error {
    io::Error::other("a message was lost while it was filled")
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn broken(error: io::Error) -> Failure {
    Failure::transport(&error)
}

impl Carrier for WebSocket {
    type Error = Failure;

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Vec<Incoming>,
    ) -> Poll<Result<&[u8], Failure>> {
        incoming.clear();
        let (controls, close_code) = (&mut self.controls, &mut self.close_code);
        let mut control = |control| match control {
            Control::Pong(payload) => queue(controls, OpCode::Pong, payload),
            // Without a code there is none to echo (RFC 6455 section 7.1.5).
            Control::Closed(code) => *close_code = code,
            Control::Fault(code) => *close_code = Some(code),
        };
        if !self.early_is_decoded {
            self.early_is_decoded = true;
            if !self.early.is_empty() {
                let all = 0..self.early.len();
                Self::decode(&mut self.decoder, &mut self.early, all, incoming, control)?;
                return Poll::Ready(Ok(&self.early));
            }
        }
        self.early = Vec::new();
        let opened = ready!(self.tls.poll_open_batch(cx, &mut self.records)).map_err(broken)?;
        let Some(buffer) = opened else {
            incoming.push(Incoming::Closed(Closed {
                goodbye: false,
                code: None,
                description: String::new(),
            }));
            return Poll::Ready(Ok(&[]));
        };
        for record in &self.records {
            Self::decode(
                &mut self.decoder,
                buffer,
                record.clone(),
                incoming,
                &mut control,
            )?;
        }
        Poll::Ready(Ok(buffer))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if self.framed > 0 && self.space().len() < ROOM_MIN {
                self.seal().map_err(broken)?;
            }
            if self.framed == 0 {
                ready!(self.tls.poll_ready(cx)).map_err(broken)?;
            }
            self.write_controls().map_err(broken)?;
            if self.control_rest.is_empty() && !self.has_text() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn space(&mut self) -> &mut [u8] {
        let room = match self.unfinished {
            Some(_) => 0,
            None => header_room(self.role),
        };
        let start = self.framed + room + self.filled;
        self.tls.record().get_mut(start..).unwrap_or_default()
    }

    fn spaces(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]> {
        // If the record cannot be sealed, the connection says so at the next call.
        let most = if self.seal().is_ok() { most } else { 0 };
        let room = header_room(self.role);
        // A message with a shorter header than that would not fill its record, and what is behind it would not be where it
        // was offered. Only a peer that asks for tiny records (RFC 8449) has such ones.
        let whole = self.tls.record().len().saturating_sub(room);
        let most = if websocket::header_len(self.role, whole) < room {
            most.min(1)
        } else {
            most
        };
        let per_message = self.spaces_per_message();
        self.tls
            .records(most)
            .enumerate()
            .map(move |(number, record)| {
                // What goes on with a frame has no header.
                let room = if number % per_message == 0 { room } else { 0 };
                record.get_mut(room..).unwrap_or_default()
            })
    }

    fn spaces_per_message(&self) -> usize {
        if self.long_messages { LONG_MESSAGE } else { 1 }
    }

    fn add(&mut self, n: usize) {
        self.filled += n;
    }

    fn filled(&self) -> usize {
        self.filled
    }

    fn commit(&mut self, following: usize) -> Result<(), Failure> {
        match self.unfinished.take() {
            Some(frame) => self.continue_frame(frame),
            None => self.end_frame(OpCode::Binary, following),
        }
        .map_err(broken)?;
        if self.space().len() < ROOM_MIN {
            self.seal().map_err(broken)?;
        }
        Ok(())
    }

    fn text(&mut self, text: Vec<u8>) {
        queue(&mut self.controls, OpCode::Text, text);
    }

    fn ping(&mut self, payload: &[u8]) {
        queue(&mut self.controls, OpCode::Ping, payload.to_vec());
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            self.seal().map_err(broken)?;
            if self.controls.is_empty() && self.control_rest.is_empty() {
                return self.tls.poll_flush(cx).map_err(broken);
            }
            ready!(self.poll_ready(cx))?;
        }
    }

    fn close(&mut self, code: CloseCode) {
        if !self.closing {
            self.closing = true;
            let code = self.close_code.unwrap_or(code as u16);
            queue(
                &mut self.controls,
                OpCode::Close,
                code.to_be_bytes().to_vec(),
            );
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        ready!(self.poll_flush(cx))?;
        self.tls.poll_close(cx).map_err(broken)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::poll_fn;

    use ech_workers_tls::authority::{CertificateAuthority, Validity};
    use ech_workers_tls::{
        ClientContext, ClientParameters, Ech, HelloForm, Profile, ServerContext, Trust,
    };
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn our_ping_waits_for_its_turn_behind_any_number_of_answers() {
        let mut controls = VecDeque::new();
        queue(&mut controls, OpCode::Ping, vec![1]);
        for number in 0..20 {
            queue(&mut controls, OpCode::Pong, vec![number]);
        }
        queue(&mut controls, OpCode::Ping, vec![2]);
        queue(&mut controls, OpCode::Close, vec![3]);
        let (pongs, others): (Vec<_>, Vec<_>) = controls
            .into_iter()
            .partition(|(opcode, _)| *opcode == OpCode::Pong);
        let pongs: Vec<u8> = pongs.into_iter().flat_map(|(_, payload)| payload).collect();
        assert_eq!(pongs, (12..20).collect::<Vec<u8>>());
        assert_eq!(others, [(OpCode::Ping, vec![2]), (OpCode::Close, vec![3])]);
    }

    /// A client's WebSocket, and the TLS connection that it writes to.
    pub(crate) async fn pair() -> (WebSocket, TlsStream) {
        let authority = CertificateAuthority::new().unwrap();
        let identity = authority
            .issue(&["hidden.test"], Validity::days(1))
            .unwrap();
        let server = ServerContext::new(&[identity]).unwrap();
        let client = ClientContext::new(&Trust {
            system: false,
            extra_pem: vec![authority.root_pem().unwrap()],
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let parameters = ClientParameters {
            profile: Profile::standard(),
            form: HelloForm::WebSocket,
            server_name: "hidden.test",
            ech: Ech::Off,
            without: None,
            session_key: None,
        };
        let (ours, theirs) = tokio::join!(
            ech_workers_tls::connect(tcp, &client, parameters),
            ech_workers_tls::accept(accepted, &server)
        );
        let websocket = WebSocket::new(ours.unwrap(), Role::Client, Vec::new());
        (websocket, theirs.unwrap())
    }

    /// Sends `bytes` as the session does with bulk: as many records as there are, as few messages as may be.
    fn send(carrier: &mut WebSocket, mut bytes: &[u8]) -> usize {
        let per_message = carrier.spaces_per_message();
        let mut sizes = Vec::new();
        for space in carrier.spaces(16) {
            let length = space.len().min(bytes.len());
            let (now, later) = bytes.split_at(length);
            space[..length].copy_from_slice(now);
            sizes.push(length);
            bytes = later;
        }
        for message in sizes.chunks(per_message) {
            let mut left: usize = message.iter().sum();
            for length in message.iter().filter(|length| **length > 0) {
                left -= length;
                carrier.add(*length);
                carrier.commit(left).unwrap();
            }
        }
        sizes.iter().sum()
    }

    #[tokio::test]
    async fn a_peer_that_likes_long_messages_gets_four_records_in_one_frame() {
        let (mut carrier, mut peer) = pair().await;
        for (long, frames) in [(false, 10), (true, 3)] {
            carrier.long_messages = long;
            let content: Vec<u8> = (0..150_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
            poll_fn(|cx| carrier.poll_ready(cx)).await.unwrap();
            assert_eq!(send(&mut carrier, &content), content.len());
            // What comes behind them has a frame of its own.
            carrier.ping(b"now");
            let flushing = poll_fn(|cx| carrier.poll_flush(cx));
            let mut received = Vec::new();
            let receiving = async {
                let mut decoder = Decoder::new(Role::Server);
                let (mut raw, mut at, mut frames) = (Vec::new(), 0, 0);
                loop {
                    while at < raw.len() {
                        let (used, event) = decoder.decode(&mut raw[at..]).unwrap();
                        match event {
                            Some(websocket::Event::Data { range, end, .. }) => {
                                received.extend_from_slice(&raw[at..][range]);
                                frames += usize::from(end);
                            }
                            Some(websocket::Event::Ping(_)) => return frames,
                            Some(event) => panic!("{event:?}"),
                            None => {}
                        }
                        at += used;
                    }
                    assert_ne!(peer.read_buf(&mut raw).await.unwrap(), 0);
                }
            };
            let (flushed, seen) = tokio::join!(flushing, receiving);
            flushed.unwrap();
            assert_eq!(seen, frames);
            assert_eq!(received, content);
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_a_connection_on_loopback_is_taken_from_the_systems_congestion_control() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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
