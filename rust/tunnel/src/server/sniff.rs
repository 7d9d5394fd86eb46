//! The first message behind an upgrade, which shows whether the client multiplexes or speaks simple mode.

use ech_workers_tls::TlsStream;
use ech_workers_websocket::{self as websocket, Decoder, MessageKind, Role};
use tokio::io::AsyncReadExt;

use crate::failure::{Code, Failure, Layer};

/// What may come before the first byte of the first message.
const FIRST_MESSAGE_MAX: usize = 4096;

/// What came first behind the upgrade, as far as it decides the protocol.
pub(crate) struct First {
    pub(crate) kind: MessageKind,
    /// All bytes so far, undecoded.
    pub(crate) bytes: Vec<u8>,
}

/// Reads until the first message shows what it is: a binary one that begins with yamux's version, or a text.
pub(crate) async fn first_message(tls: &mut TlsStream, early: &[u8]) -> Result<First, Failure> {
    let mut bytes = early.to_vec();
    let mut buffer = [0; 2048];
    loop {
        match peek(&bytes)? {
            Some((MessageKind::Binary, first)) if first != 0 => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    Code::WebSocketProtocol,
                    "the first message is neither yamux nor CONNECT",
                ));
            }
            Some((kind, _)) => return Ok(First { kind, bytes }),
            None if bytes.len() > FIRST_MESSAGE_MAX => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    Code::WebSocketProtocol,
                    "there is no first message",
                ));
            }
            None => {}
        }
        match tls.read(&mut buffer).await {
            Ok(0) => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    Code::Closed,
                    "the client left before its first message",
                ));
            }
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(error) => return Err(Failure::transport(&error)),
        }
    }
}

/// The kind and the first byte of the first message in `bytes`, if they are there.
fn peek(bytes: &[u8]) -> Result<Option<(MessageKind, u8)>, Failure> {
    let mut copy = bytes.to_vec();
    let mut decoder = Decoder::new(Role::Server);
    let mut at = 0;
    while at < copy.len() {
        let (used, event) = decoder.decode(&mut copy[at..]).map_err(|error| {
            Failure::new(
                Layer::WebSocket,
                Code::WebSocketProtocol,
                format!("the client broke RFC 6455: {error}"),
            )
        })?;
        match event {
            Some(websocket::Event::Data { kind, range, .. }) if !range.is_empty() => {
                return Ok(Some((kind, copy[at + range.start])));
            }
            Some(websocket::Event::Close(_)) => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    Code::Closed,
                    "the client left before its first message",
                ));
            }
            _ => at += used,
        }
    }
    Ok(None)
}
