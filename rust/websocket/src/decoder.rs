use std::ops::{Deref, Range};

use crate::frame::Header;
use crate::mask::{mask, rotate};
use crate::{CloseReason, MAX_CONTROL_PAYLOAD, MAX_HEADER, OpCode, ProtocolError, Role};

/// Finds frames in the bytes received, however these are split.
///
/// After an error every further call gives the same error. After a close frame all further bytes are taken and
/// dropped (RFC 6455 section 5.5.1).
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    state: State,
    /// What is left of the frame's payload.
    remaining: u64,
    /// The masking key, turned to the next byte of payload.
    key: [u8; 4],
    /// The message that waits for further fragments after the frame under way.
    fragmented: Option<MessageKind>,
    /// The part of a header that came with earlier input.
    header: [u8; MAX_HEADER],
    header_len: u8,
    /// The part of a control frame's payload that came already.
    control: ControlPayload,
}

/// What [`Decoder::decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A part of a message, unmasked, at `range` of the call's input.
    Data {
        /// Text or binary, as the message's first frame says.
        kind: MessageKind,
        /// Where in the input. Empty only where a message ends with an empty frame.
        range: Range<usize>,
        /// Whether these are the message's last bytes.
        end: bool,
    },
    /// To be answered with a pong of the same payload.
    Ping(ControlPayload),
    /// The answer to a ping.
    Pong(ControlPayload),
    /// The peer closes the connection: to be answered with a close frame if none has been sent yet.
    Close(Option<CloseReason>),
}

/// What a message consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Text, in UTF-8 as the peer says: not checked here.
    Text,
    /// Bytes.
    Binary,
}

/// The payload of a ping or pong, kept in place: at most 125 bytes.
#[derive(Clone, Copy)]
pub struct ControlPayload {
    bytes: [u8; MAX_CONTROL_PAYLOAD],
    len: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between frames, or inside a header.
    Header,
    /// Inside a data frame's payload.
    Data(MessageKind),
    /// Inside a control frame's payload.
    Control(OpCode),
    /// The peer has closed.
    Closed,
    Failed(ProtocolError),
}

impl Decoder {
    /// A decoder for what `role`, that is our side, receives after the opening handshake.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            state: State::Header,
            remaining: 0,
            key: [0; 4],
            fragmented: None,
            header: [0; MAX_HEADER],
            header_len: 0,
            control: ControlPayload::EMPTY,
        }
    }

    /// Reads `input` up to the next event: how many bytes of it are done with, and the event, if one came of them.
    ///
    /// Masked payload is unmasked in place. At least one byte is taken if there is one; call again with the rest until
    /// nothing is left. Bytes that were taken must not be given again.
    ///
    /// # Errors
    /// [`ProtocolError`] when the peer breaks RFC 6455; the connection is to be closed with its code.
    pub fn decode(&mut self, input: &mut [u8]) -> Result<(usize, Option<Event>), ProtocolError> {
        let mut position = 0;
        loop {
            match self.state {
                State::Header => {
                    let rest = input.get(position..).unwrap_or_default();
                    let (len, header) = match self.take_header(rest) {
                        Ok(taken) => taken,
                        Err(error) => return Err(self.fail(error)),
                    };
                    position += len;
                    let Some(header) = header else {
                        return Ok((position, None));
                    };
                    if let Err(error) = self.begin_frame(header) {
                        return Err(self.fail(error));
                    }
                }
                State::Data(kind) => {
                    let rest = input.get_mut(position..).unwrap_or_default();
                    let len = usize::try_from(self.remaining)
                        .map_or(rest.len(), |remaining| remaining.min(rest.len()));
                    mask(rest.get_mut(..len).unwrap_or_default(), self.key, 0);
                    self.key = rotate(self.key, len);
                    self.remaining -= len as u64;
                    let range = position..position + len;
                    position += len;
                    let done = self.remaining == 0;
                    if done {
                        self.state = State::Header;
                    }
                    let end = done && self.fragmented.is_none();
                    if end || !range.is_empty() {
                        return Ok((position, Some(Event::Data { kind, range, end })));
                    }
                    // An empty fragment is passed over.
                    if !done {
                        return Ok((position, None));
                    }
                }
                State::Control(opcode) => {
                    let rest = input.get_mut(position..).unwrap_or_default();
                    let len = rest.len().min(self.remaining as usize);
                    let part = rest.get_mut(..len).unwrap_or_default();
                    mask(part, self.key, 0);
                    self.key = rotate(self.key, len);
                    self.remaining -= len as u64;
                    self.control.extend(part);
                    position += len;
                    if self.remaining > 0 {
                        return Ok((position, None));
                    }
                    return match self.end_control(opcode) {
                        Ok(event) => Ok((position, Some(event))),
                        Err(error) => Err(self.fail(error)),
                    };
                }
                State::Closed => return Ok((input.len(), None)),
                State::Failed(error) => return Err(error),
            }
        }
    }

    /// Whether a close frame has been received.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// How many bytes of `input` belong to the header, and the header once it is whole.
    #[inline]
    fn take_header(&mut self, input: &[u8]) -> Result<(usize, Option<Header>), ProtocolError> {
        if self.header_len == 0
            && let Some((header, len)) = Header::parse(self.role, input)?
        {
            return Ok((len, Some(header)));
        }
        self.take_split_header(input)
    }

    #[cold]
    fn take_split_header(
        &mut self,
        input: &[u8],
    ) -> Result<(usize, Option<Header>), ProtocolError> {
        for (index, &byte) in input.iter().enumerate() {
            // There is always a place: a header is whole at MAX_HEADER bytes at the latest.
            if let Some(place) = self.header.get_mut(usize::from(self.header_len)) {
                *place = byte;
                self.header_len += 1;
            }
            let have = self.header.get(..usize::from(self.header_len));
            let have = have.unwrap_or_default();
            if let Some((header, _)) = Header::parse(self.role, have)? {
                self.header_len = 0;
                return Ok((index + 1, Some(header)));
            }
        }
        Ok((input.len(), None))
    }

    /// Checks the frame against those before it (RFC 6455 section 5.4).
    #[inline]
    fn begin_frame(&mut self, header: Header) -> Result<(), ProtocolError> {
        self.state = match (header.opcode, self.fragmented) {
            (OpCode::Close | OpCode::Ping | OpCode::Pong, _) => {
                self.control = ControlPayload::EMPTY;
                State::Control(header.opcode)
            }
            (OpCode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (OpCode::Continuation, Some(kind)) => State::Data(kind),
            (_, Some(_)) => return Err(ProtocolError::ExpectedContinuation(header.opcode)),
            (OpCode::Text, None) => State::Data(MessageKind::Text),
            (OpCode::Binary, None) => State::Data(MessageKind::Binary),
        };
        if let State::Data(kind) = self.state {
            self.fragmented = (!header.fin).then_some(kind);
        }
        self.remaining = header.payload_len;
        self.key = header.key;
        Ok(())
    }

    fn end_control(&mut self, opcode: OpCode) -> Result<Event, ProtocolError> {
        self.state = State::Header;
        Ok(match opcode {
            OpCode::Ping => Event::Ping(self.control),
            OpCode::Pong => Event::Pong(self.control),
            _ => {
                let reason = CloseReason::parse(&self.control)?;
                self.state = State::Closed;
                Event::Close(reason)
            }
        })
    }

    #[cold]
    fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        self.state = State::Failed(error);
        error
    }
}

impl ControlPayload {
    const EMPTY: Self = Self {
        bytes: [0; MAX_CONTROL_PAYLOAD],
        len: 0,
    };

    /// A payload of our own, or `None` if it is longer than [`MAX_CONTROL_PAYLOAD`].
    pub fn new(payload: &[u8]) -> Option<Self> {
        (payload.len() <= MAX_CONTROL_PAYLOAD).then(|| {
            let mut control = Self::EMPTY;
            control.extend(payload);
            control
        })
    }

    /// `payload` fits: the header was checked.
    fn extend(&mut self, payload: &[u8]) {
        let start = usize::from(self.len);
        if let Some(place) = self.bytes.get_mut(start..start + payload.len()) {
            place.copy_from_slice(payload);
            self.len += payload.len() as u8;
        }
    }
}

impl Deref for ControlPayload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl PartialEq for ControlPayload {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for ControlPayload {}

impl std::fmt::Debug for ControlPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All events of `input` given at once, with their payload in place of the range.
    fn decode(role: Role, input: &[u8]) -> Result<Vec<Event>, ProtocolError> {
        feed(&mut Decoder::new(role), input)
    }

    fn feed(decoder: &mut Decoder, input: &[u8]) -> Result<Vec<Event>, ProtocolError> {
        let mut input = input.to_vec();
        let mut events = Vec::new();
        let mut rest = &mut input[..];
        while !rest.is_empty() {
            let (taken, event) = decoder.decode(rest)?;
            assert!(taken > 0, "the decoder stands still");
            events.extend(event);
            rest = &mut rest[taken..];
        }
        Ok(events)
    }

    fn control(payload: &[u8]) -> ControlPayload {
        ControlPayload::new(payload).unwrap()
    }

    #[test]
    fn a_masked_hello_is_unmasked_in_place() {
        let mut input = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        let (taken, event) = Decoder::new(Role::Server).decode(&mut input).unwrap();
        assert_eq!(taken, input.len());
        assert_eq!(
            event,
            Some(Event::Data {
                kind: MessageKind::Text,
                range: 6..11,
                end: true
            })
        );
        assert_eq!(input[6..], *b"Hello");
    }

    #[test]
    fn a_fragmented_message_ends_with_its_last_fragment_only() {
        let events = decode(Role::Client, b"\x01\x03Hel\x80\x02lo").unwrap();
        let data = |range, end| Event::Data {
            kind: MessageKind::Text,
            range,
            end,
        };
        assert_eq!(events, [data(2..5, false), data(2..4, true)]);
    }

    #[test]
    fn a_ping_between_fragments_does_not_end_the_message() {
        let events = decode(Role::Client, b"\x02\x01a\x89\x01p\x8a\x00\x80\x01b").unwrap();
        let data = |end| Event::Data {
            kind: MessageKind::Binary,
            range: 2..3,
            end,
        };
        assert_eq!(
            events,
            [
                data(false),
                Event::Ping(control(b"p")),
                Event::Pong(control(b"")),
                data(true)
            ]
        );
    }

    #[test]
    fn empty_fragments_are_passed_over_and_an_empty_last_one_ends_the_message() {
        let events = decode(Role::Client, b"\x02\x00\x00\x00\x00\x00\x80\x00").unwrap();
        let end = Event::Data {
            kind: MessageKind::Binary,
            range: 8..8,
            end: true,
        };
        assert_eq!(events, [end]);
    }

    #[test]
    fn a_frame_longer_than_any_memory_is_passed_on_as_it_comes() {
        let mut decoder = Decoder::new(Role::Client);
        let header = [0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(feed(&mut decoder, &header), Ok(vec![]));
        for _ in 0..3 {
            let part = Event::Data {
                kind: MessageKind::Binary,
                range: 0..1000,
                end: false,
            };
            assert_eq!(feed(&mut decoder, &[7; 1000]), Ok(vec![part]));
        }
    }

    #[test]
    fn an_empty_input_changes_nothing() {
        let mut decoder = Decoder::new(Role::Client);
        for part in [&b"\x89"[..], b"\x02", b"p"] {
            assert_eq!(decoder.decode(&mut []), Ok((0, None)));
            assert_eq!(feed(&mut decoder, part), Ok(vec![]));
        }
        assert_eq!(decoder.decode(&mut []), Ok((0, None)));
        assert_eq!(
            feed(&mut decoder, b"q"),
            Ok(vec![Event::Ping(control(b"pq"))])
        );
    }

    #[test]
    fn a_continuation_of_nothing_is_refused() {
        assert_eq!(
            decode(Role::Client, b"\x80\x00"),
            Err(ProtocolError::UnexpectedContinuation)
        );
        // The message before is over.
        assert_eq!(
            decode(Role::Client, b"\x02\x00\x80\x00\x80\x00"),
            Err(ProtocolError::UnexpectedContinuation)
        );
    }

    #[test]
    fn a_new_message_inside_a_fragmented_one_is_refused() {
        assert_eq!(
            decode(Role::Client, b"\x02\x01a\x81\x01b"),
            Err(ProtocolError::ExpectedContinuation(OpCode::Text))
        );
        assert_eq!(
            decode(Role::Client, b"\x01\x01a\x02\x01b"),
            Err(ProtocolError::ExpectedContinuation(OpCode::Binary))
        );
    }

    #[test]
    fn whatever_follows_a_close_is_dropped() {
        let mut decoder = Decoder::new(Role::Client);
        let reason = CloseReason {
            code: 1001,
            reason: "bye".into(),
        };
        assert_eq!(
            feed(&mut decoder, b"\x88\x05\x03\xe9bye\xff\xff\xff\x82\x01a"),
            Ok(vec![Event::Close(Some(reason))])
        );
        assert!(decoder.is_closed());
        assert_eq!(feed(&mut decoder, b"\x82\x01a"), Ok(vec![]));
    }

    #[test]
    fn a_bad_close_is_an_error() {
        assert_eq!(
            decode(Role::Client, b"\x88\x00"),
            Ok(vec![Event::Close(None)])
        );
        assert_eq!(
            decode(Role::Client, b"\x88\x01\x03"),
            Err(ProtocolError::CloseTooShort)
        );
        assert_eq!(
            decode(Role::Client, b"\x88\x02\x03\xed"),
            Err(ProtocolError::CloseCode(1005))
        );
        assert_eq!(
            decode(Role::Client, b"\x88\x03\x03\xe8\xc3"),
            Err(ProtocolError::CloseReasonUtf8)
        );
    }

    #[test]
    fn an_error_stays() {
        let mut decoder = Decoder::new(Role::Server);
        let error = Err(ProtocolError::MaskMissing);
        assert_eq!(feed(&mut decoder, b"\x82\x01a"), error);
        assert_eq!(feed(&mut decoder, b"\x82\x81\0\0\0\0a"), error);
        assert_eq!(decoder.decode(&mut []), Err(ProtocolError::MaskMissing));
    }

    #[test]
    fn control_frames_hold_125_bytes_of_our_own_too() {
        assert_eq!(control(&[1; 125])[..], [1; 125]);
        assert_eq!(ControlPayload::new(&[1; 126]), None);
    }
}
