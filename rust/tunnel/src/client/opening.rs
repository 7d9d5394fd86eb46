//! The opening of an HTTP/2 connection as the profile's browser writes it: SETTINGS, window and priorities, then the one
//! request with the browser's order of pseudo-header fields.
//!
//! h2 orders these in its own way. Here they are rearranged between h2 and TLS, on the way out: what the server sends
//! goes to h2 as it is.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ech_workers_tls::{Http2, Priority};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// RFC 9113 section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// RFC 9113 section 4.1.
const FRAME_HEADER: usize = 9;

/// Frame types and flags (RFC 9113 section 6).
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const FLAG_ACK: u8 = 0x1;
const FLAG_PRIORITY: u8 = 0x20;

/// So many frames wait for the request; usually it is the acknowledgement of the server's settings, or nothing.
const WAITING_LIMIT: usize = 8;

/// A connection whose opening is the browser's. h2 writes to it with the browser's window sizes and first stream.
pub(crate) struct BrowserOpening<S> {
    inner: S,
    browser: &'static Http2,
    /// What h2 wrote that is not yet a whole frame.
    held: BytesMut,
    /// What goes out, each piece in a TLS record of its own.
    pieces: VecDeque<Bytes>,
    /// What waits until the request is out: a browser sends that at once, before it has read anything.
    waiting: Vec<Bytes>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preface,
    Frames,
    /// The request is out: what follows is h2's own.
    Over,
}

impl<S> BrowserOpening<S> {
    pub(crate) fn new(inner: S, browser: &'static Http2) -> Self {
        Self {
            inner,
            browser,
            held: BytesMut::new(),
            pieces: VecDeque::new(),
            waiting: Vec::new(),
            stage: Stage::Preface,
        }
    }

    /// Takes as much of what h2 wrote as is whole.
    fn arrange(&mut self) {
        loop {
            match self.stage {
                Stage::Preface if self.held.len() >= PREFACE.len() => {
                    self.held.advance(PREFACE.len());
                    self.stage = Stage::Frames;
                }
                Stage::Frames => match take_frame(&mut self.held) {
                    Some(frame) => self.arrange_frame(frame),
                    None => return,
                },
                Stage::Preface | Stage::Over => return,
            }
        }
    }

    fn arrange_frame(&mut self, frame: BytesMut) {
        let (kind, flags) = (frame[3], frame[4]);
        match kind {
            SETTINGS if flags & FLAG_ACK == 0 => self.pieces.push_back(hello(self.browser)),
            // The browser's is in its hello.
            WINDOW_UPDATE => {}
            HEADERS => {
                self.pieces.push_back(headers(self.browser, &frame));
                if !self.held.is_empty() {
                    self.pieces.push_back(self.held.split().freeze());
                }
                self.pieces.extend(self.waiting.drain(..));
                self.stage = Stage::Over;
            }
            _ if self.waiting.len() < WAITING_LIMIT => self.waiting.push(frame.freeze()),
            _ => self.pieces.push_back(frame.freeze()),
        }
    }

    fn poll_pieces(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while let Some(piece) = self.pieces.front_mut() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, piece))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            piece.advance(written);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BrowserOpening<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BrowserOpening<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_pieces(cx))?;
        if this.stage == Stage::Over {
            return Pin::new(&mut this.inner).poll_write(cx, bytes);
        }
        this.held.extend_from_slice(bytes);
        this.arrange();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_pieces(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_pieces(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

/// All that the browser sends before its first request.
fn hello(browser: &Http2) -> Bytes {
    let mut out = BytesMut::from(&PREFACE[..]);
    put_frame_header(&mut out, 6 * browser.settings.len(), SETTINGS, 0, 0);
    for &(identifier, value) in browser.settings {
        out.put_u16(identifier);
        out.put_u32(value);
    }
    put_frame_header(&mut out, 4, WINDOW_UPDATE, 0, 0);
    out.put_u32(browser.window_update);
    for (stream, priority) in browser.priorities {
        put_frame_header(&mut out, 5, PRIORITY, 0, *stream);
        put_priority(&mut out, priority);
    }
    out.freeze()
}

/// The HEADERS frame of the request, which h2 sends without padding and without priority.
fn headers(browser: &Http2, frame: &[u8]) -> Bytes {
    let (head, block) = frame.split_at(FRAME_HEADER);
    let mut flags = head[4];
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = BytesMut::with_capacity(5 + block.len());
    if let Some(priority) = &browser.priority {
        flags |= FLAG_PRIORITY;
        put_priority(&mut payload, priority);
    }
    put_block(&mut payload, browser.pseudo_header_fields, block);
    let mut out = BytesMut::with_capacity(FRAME_HEADER + payload.len());
    put_frame_header(&mut out, payload.len(), HEADERS, flags, stream);
    out.extend_from_slice(&payload);
    out.freeze()
}

/// A field block with its pseudo-header fields in this order, spelled as Firefox's compressor does it. A first block refers to
/// nothing but the static table, so that it does not matter what enters the dynamic one.
fn put_block(out: &mut BytesMut, order: &[&str], block: &[u8]) {
    let mut rest = block;
    let mut fields = Vec::with_capacity(16);
    while let Some((field, length)) = HeaderField::first(rest) {
        fields.push(field);
        rest = &rest[length..];
    }
    // Stable: what the order does not name stays where it is, behind what it names.
    fields.sort_by_key(|field| match field.pseudo() {
        Pseudo::SizeUpdate => 0,
        Pseudo::Named(name) => 1 + order.iter().take_while(|other| **other != name).count(),
        Pseudo::None => 1 + order.len(),
    });
    for field in fields {
        field.put(out);
    }
    out.extend_from_slice(rest);
}

/// The representation of one field (RFC 7541 section 6).
struct HeaderField<'a> {
    /// The name's place in the static table; 0 if it has none.
    index: usize,
    /// All before the value.
    head: &'a [u8],
    /// The value, with its length in front; empty if the table has it.
    value: &'a [u8],
}

enum Pseudo {
    SizeUpdate,
    Named(&'static str),
    None,
}

impl<'a> HeaderField<'a> {
    /// The first one of a block, and how long it is; `None` at the end.
    fn first(block: &'a [u8]) -> Option<(Self, usize)> {
        let (prefix, is_literal) = match block.first()? {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            ..=0x1f => (4, true),
        };
        let (index, mut head) = integer(block, prefix)?;
        if is_literal && index == 0 {
            head += string(&block[head..])?;
        }
        let length = if is_literal {
            head + string(&block[head..])?
        } else {
            head
        };
        let field = Self {
            index,
            head: &block[..head],
            value: &block[head..length],
        };
        Some((field, length))
    }

    fn pseudo(&self) -> Pseudo {
        if self.head[0] & 0xe0 == 0x20 {
            // It stays in front (RFC 7541 section 4.2).
            return Pseudo::SizeUpdate;
        }
        // RFC 7541 appendix A.
        match self.index {
            1 => Pseudo::Named(":authority"),
            2 | 3 => Pseudo::Named(":method"),
            4 | 5 => Pseudo::Named(":path"),
            6 | 7 => Pseudo::Named(":scheme"),
            _ => Pseudo::None,
        }
    }

    /// As Firefox spells what can be spelled in several ways: it takes the last entry with the name `:path`, indexes the
    /// content-length, and marks the empty string as Huffman coded.
    fn put(&self, out: &mut BytesMut) {
        out.extend_from_slice(match self.head {
            [0x04] => &[0x05],
            [0x0f, 0x0d] => &[0x5c],
            head => head,
        });
        out.extend_from_slice(match self.value {
            [0x00] => &[0x80],
            value => value,
        });
    }
}

/// How long a string literal is (RFC 7541 section 5.2).
fn string(bytes: &[u8]) -> Option<usize> {
    let (content, length) = integer(bytes, 7)?;
    let end = length.checked_add(content)?;
    (end <= bytes.len()).then_some(end)
}

/// An integer, and how many bytes it takes (RFC 7541 section 5.1); `None` if it is larger than any frame.
fn integer(bytes: &[u8], prefix: u8) -> Option<(usize, usize)> {
    let most = (1 << prefix) - 1;
    let first = usize::from(*bytes.first()?) & most;
    if first < most {
        return Some((first, 1));
    }
    let mut value = most;
    for (place, byte) in bytes[1..].iter().take(3).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, 2 + place));
        }
    }
    None
}

/// The first frame, if it is whole.
fn take_frame(held: &mut BytesMut) -> Option<BytesMut> {
    let length = held.get(..3)?;
    let length =
        usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
    (held.len() >= FRAME_HEADER + length).then(|| held.split_to(FRAME_HEADER + length))
}

fn put_frame_header(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    out.put_uint(length as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

fn put_priority(out: &mut BytesMut, priority: &Priority) {
    out.put_u32(priority.depends_on);
    out.put_u8(priority.weight);
}

#[cfg(test)]
mod tests {
    use ech_workers_tls::Profile;
    use http::Request;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::client::fetch::http2_builder;

    /// The frames that a server gets, up to the request's end and the acknowledgement of `early` settings.
    async fn sent(profile: &str, body: &'static [u8], early: &[u8]) -> Vec<Frame> {
        let browser = &Profile::named(profile).unwrap().http2;
        let (client, mut server) = duplex(1 << 16);
        server.write_all(early).await.unwrap();
        let builder = http2_builder(browser);
        let opening = BrowserOpening::new(client, browser);
        let (mut sender, connection) = builder.handshake(opening).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(if body.is_empty() { "GET" } else { "POST" })
            .uri("https://dns.test/q")
            .header("accept-encoding", "")
            .header("content-length", body.len())
            .body(())
            .unwrap();
        let (_answer, mut stream) = sender.send_request(request, body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(Bytes::from_static(body), true).unwrap();
        }
        let mut bytes = BytesMut::new();
        let mut found = Vec::new();
        while !(found
            .iter()
            .any(|frame: &Frame| frame.1 & 0x1 != 0 && frame.2 != 0)
            && (early.is_empty() || found.contains(&ACKNOWLEDGEMENT)))
        {
            assert_ne!(server.read_buf(&mut bytes).await.unwrap(), 0);
            let mut rest = BytesMut::from(bytes.strip_prefix(PREFACE).unwrap());
            found.clear();
            while let Some(frame) = take_frame(&mut rest) {
                let stream = u32::from_be_bytes(frame[5..9].try_into().unwrap());
                found.push((frame[3], frame[4], stream, hex(&frame[9..])));
            }
        }
        connection.abort();
        found
    }

    /// Type, flags, stream, payload.
    type Frame = (u8, u8, u32, String);

    const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    const ACKNOWLEDGEMENT: Frame = (SETTINGS, FLAG_ACK, 0, String::new());

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &str) -> Frame {
        (kind, flags, stream, payload.replace(' ', ""))
    }

    // `:path: /q`, `:authority: dns.test`, `:scheme: https`, `accept-encoding:`; behind them `content-length`.
    const FIELDS: &str = "05 8263b7 41 8692a42e92a13f 87 50 80 5c";

    #[tokio::test]
    async fn a_request_of_firefox_153_goes_out_as_it_was_captured() {
        assert_eq!(
            sent("firefox-153", b"", b"").await,
            [
                frame(
                    SETTINGS,
                    0,
                    0,
                    "0001 00010000 0002 00000000 0004 00020000 0005 00004000"
                ),
                frame(WINDOW_UPDATE, 0, 0, "00bf0001"),
                frame(HEADERS, 0x25, 3, &format!("00000000 15 82 {FIELDS} 8107")),
            ]
        );
    }

    #[tokio::test]
    async fn a_request_of_firefox_120_follows_its_priority_groups() {
        assert_eq!(
            sent("firefox-120", b"body", b"").await,
            [
                frame(SETTINGS, 0, 0, "0001 00010000 0004 00020000 0005 00004000"),
                frame(WINDOW_UPDATE, 0, 0, "00bf0001"),
                frame(PRIORITY, 0, 3, "00000000 c8"),
                frame(PRIORITY, 0, 5, "00000000 64"),
                frame(PRIORITY, 0, 7, "00000000 00"),
                frame(PRIORITY, 0, 9, "00000007 00"),
                frame(PRIORITY, 0, 11, "00000003 00"),
                frame(PRIORITY, 0, 13, "00000000 f0"),
                frame(HEADERS, 0x24, 15, &format!("00000007 15 83 {FIELDS} 816b")),
                frame(0, 1, 15, &hex(b"body")),
            ]
        );
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_gets_the_request_before_its_acknowledgement() {
        let frames = sent("firefox-153", b"body", EMPTY_SETTINGS).await;
        let kinds: Vec<u8> = frames.iter().map(|frame| frame.0).collect();
        assert_eq!(kinds, [SETTINGS, WINDOW_UPDATE, HEADERS, 0, SETTINGS]);
    }

    #[test]
    fn a_change_of_the_table_size_stays_in_front() {
        let mut out = BytesMut::new();
        // To 2048; `:method: GET`, `:scheme: https`, `:authority: a`, `:path: /`, `te: b` with a name of its own.
        let block = [
            0x3f, 0xe1, 0x0f, 0x82, 0x87, 0x41, 1, b'a', 0x84, 0x40, 2, b't', b'e', 1, b'b',
        ];
        put_block(
            &mut out,
            &[":method", ":path", ":authority", ":scheme"],
            &block,
        );
        assert_eq!(hex(&out), "3fe10f82844101618740027465".to_owned() + "0162");
    }

    #[test]
    fn a_block_that_is_cut_off_is_left_as_it_is() {
        let block = [0x82, 0x41, 5, b'a'];
        let mut out = BytesMut::new();
        put_block(&mut out, &[":authority", ":method"], &block);
        assert_eq!(&out[..], block);
    }
}
