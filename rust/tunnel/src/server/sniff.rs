//! The first message behind an upgrade, which shows whether the client multiplexes or speaks simple mode.

use ech_workers_tls::TlsStream;
use ech_workers_websocket::{self as websocket, Decoder, MessageKind, OpCode, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::failure::{Code, Failure, Layer};

/// What may come before the first byte of the first message.
const FIRST_MESSAGE_MAX: usize = 4096;

/// What comes before the payload of a client's control frame.
const CONTROL_HEADER: usize = 6;

/// What came first behind the upgrade, as far as it decides the protocol.
pub(crate) struct First {
    pub(crate) kind: MessageKind,
    /// All bytes so far, undecoded.
    pub(crate) bytes: Vec<u8>,
}

/// Reads until the first message shows what it is: a binary one that begins with yamux's version, or a text. Pings that come
/// before it are answered: a client that has nothing to send finds out by them that the connection lives.
pub(crate) async fn first_message(tls: &mut TlsStream, early: &[u8]) -> Result<First, Failure> {
    let mut bytes = early.to_vec();
    let mut buffer = [0; 2048];
    loop {
        let front = look_at(&bytes)?;
        match front.first {
            Some((MessageKind::Binary, first)) if first != 0 => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    Code::WebSocketProtocol,
                    "the first message is neither yamux nor CONNECT",
                ));
            }
            Some((kind, _)) => return Ok(First { kind, bytes }),
            None => {}
        }
        if !front.pongs.is_empty() {
            send(tls, &front.pongs).await?;
        }
        bytes.drain(..front.done_with);
        if bytes.len() > FIRST_MESSAGE_MAX {
            return Err(Failure::new(
                Layer::WebSocket,
                Code::WebSocketProtocol,
                "there is no first message",
            ));
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

async fn send(tls: &mut TlsStream, bytes: &[u8]) -> Result<(), Failure> {
    let sending = async {
        tls.write_all(bytes).await?;
        tls.flush().await
    };
    sending.await.map_err(|error| Failure::transport(&error))
}

/// What is in the bytes so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Front {
    /// The kind and the first byte of the first message.
    first: Option<(MessageKind, u8)>,
    /// Control frames at the front, in bytes: nobody needs them again.
    done_with: usize,
    /// The answers to the pings among them.
    pongs: Vec<u8>,
}

fn look_at(bytes: &[u8]) -> Result<Front, Failure> {
    let mut copy = bytes.to_vec();
    let mut decoder = Decoder::new(Role::Server);
    let mut front = Front::default();
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
                front.first = Some((kind, copy[at + range.start]));
                return Ok(front);
            }
            Some(websocket::Event::Close(_)) => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    Code::Closed,
                    "the client left before its first message",
                ));
            }
            // Behind the empty beginning of a message, control frames are left to the session with it.
            Some(websocket::Event::Ping(payload))
                if front.done_with == at && used == CONTROL_HEADER + payload.len() =>
            {
                websocket::encode_control(&mut front.pongs, OpCode::Pong, &payload, None);
                front.done_with += used;
            }
            Some(websocket::Event::Pong(payload))
                if front.done_with == at && used == CONTROL_HEADER + payload.len() =>
            {
                front.done_with += used;
            }
            _ => {}
        }
        at += used;
    }
    Ok(front)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

    fn frame(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        websocket::encode_frame(&mut bytes, opcode, payload, KEY);
        bytes
    }

    #[test]
    fn pings_before_the_first_message_are_answered_once_however_they_are_cut() {
        let pings = [
            frame(OpCode::Ping, b"one"),
            frame(OpCode::Pong, b"nobody asked"),
            frame(OpCode::Ping, &[7; 125]),
        ]
        .concat();
        let message = frame(OpCode::Binary, &[0, 1, 2]);
        let mut answers = Vec::new();
        websocket::encode_control(&mut answers, OpCode::Pong, b"one", None);
        websocket::encode_control(&mut answers, OpCode::Pong, &[7; 125], None);
        let mut all = pings.clone();
        all.extend(&message);
        for step in 1..all.len() {
            let (mut bytes, mut pongs) = (Vec::new(), Vec::new());
            let mut first = None;
            for part in all.chunks(step) {
                bytes.extend_from_slice(part);
                let front = look_at(&bytes).unwrap();
                if front.first.is_some() {
                    first = front.first;
                    continue;
                }
                pongs.extend(front.pongs);
                bytes.drain(..front.done_with);
            }
            assert_eq!(first, Some((MessageKind::Binary, 0)), "{step}");
            // The session answers those that came with the first message.
            assert!(answers.starts_with(&pongs), "{step}");
            let left = answers.len() - pongs.len();
            assert_eq!(left == 0, bytes == message, "{step}");
        }
    }

    #[test]
    fn what_a_fragmented_message_begins_with_is_left_to_the_session() {
        // An empty first fragment, without FIN.
        let mut bytes = vec![OpCode::Binary as u8, 0x80, 1, 2, 3, 4];
        bytes.extend(frame(OpCode::Ping, b"between"));
        bytes.extend(frame(OpCode::Ping, b"again"));
        assert_eq!(look_at(&bytes).unwrap(), Front::default());
    }
}
