//! Two endpoints over a byte stream that is cut anywhere, with messages that are cut anywhere.
#![allow(missing_docs)]

use ech_workers_websocket::{
    Decoder, Event, MAX_HEADER, MessageKind, OpCode, ProtocolError, Role, encode_close,
    encode_control, encode_header, header_len, mask,
};
use proptest::prelude::*;
use proptest::sample::Index;

/// What one endpoint says.
#[derive(Clone, Debug)]
enum Saying {
    Message {
        kind: MessageKind,
        payload: Vec<u8>,
        /// Where the payload is cut into frames; equal cuts make empty frames.
        cuts: Vec<Index>,
        /// Control frames behind the first frames, in their order.
        between: Vec<Control>,
    },
    Control(Control),
}

#[derive(Clone, Debug, PartialEq)]
enum Control {
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

/// What the other endpoint understands.
#[derive(Debug, PartialEq)]
enum Heard {
    Message(MessageKind, Vec<u8>),
    Control(Control),
    Close(Option<(u16, String)>),
}

/// An endpoint's outgoing bytes; the keys are all different.
struct Sender {
    role: Role,
    sent: Vec<u8>,
    frames: u32,
}

impl Sender {
    fn new(role: Role) -> Self {
        Self {
            role,
            sent: Vec::new(),
            frames: 0,
        }
    }

    fn key(&mut self) -> Option<[u8; 4]> {
        self.frames += 1;
        (self.role == Role::Client).then(|| self.frames.wrapping_mul(0x9e37_79b9).to_be_bytes())
    }

    /// As the relay does it: room for the header, the payload behind it, masked where it lies.
    fn frame(&mut self, opcode: OpCode, fin: bool, payload: &[u8]) {
        let key = self.key();
        let start = self.sent.len();
        let room = header_len(self.role, payload.len());
        self.sent.resize(start + room, 0);
        self.sent.extend_from_slice(payload);
        let written = encode_header(&mut self.sent[start..], opcode, fin, payload.len(), key);
        assert_eq!(written, room);
        if let Some(key) = key {
            mask(&mut self.sent[start + room..], key, 0);
        }
    }

    fn control(&mut self, control: &Control) {
        let key = self.key();
        match control {
            Control::Ping(payload) => encode_control(&mut self.sent, OpCode::Ping, payload, key),
            Control::Pong(payload) => encode_control(&mut self.sent, OpCode::Pong, payload, key),
        }
    }

    fn say(&mut self, saying: &Saying, heard: &mut Vec<Heard>) {
        match saying {
            Saying::Message {
                kind,
                payload,
                cuts,
                between,
            } => {
                let mut cuts: Vec<_> = cuts
                    .iter()
                    .map(|cut| cut.index(payload.len() + 1))
                    .collect();
                cuts.sort_unstable();
                let mut between = between.iter();
                let mut opcode = match kind {
                    MessageKind::Text => OpCode::Text,
                    MessageKind::Binary => OpCode::Binary,
                };
                let mut start = 0;
                for cut in cuts {
                    self.frame(opcode, false, &payload[start..cut]);
                    if let Some(control) = between.next() {
                        self.control(control);
                        heard.push(Heard::Control(control.clone()));
                    }
                    opcode = OpCode::Continuation;
                    start = cut;
                }
                self.frame(opcode, true, &payload[start..]);
                heard.push(Heard::Message(*kind, payload.clone()));
            }
            Saying::Control(control) => {
                self.control(control);
                heard.push(Heard::Control(control.clone()));
            }
        }
    }
}

/// Puts the parts of messages together again.
struct Receiver {
    decoder: Decoder,
    message: Vec<u8>,
    heard: Vec<Heard>,
}

impl Receiver {
    fn new(role: Role) -> Self {
        Self {
            decoder: Decoder::new(role),
            message: Vec::new(),
            heard: Vec::new(),
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        while !input.is_empty() {
            let (taken, event) = self.decoder.decode(input)?;
            assert!(taken > 0, "the decoder stands still");
            match event {
                Some(Event::Data { kind, range, end }) => {
                    assert!(range.end <= taken, "payload beyond what was taken");
                    assert!(end || !range.is_empty(), "an event about nothing");
                    self.message.extend_from_slice(&input[range]);
                    if end {
                        let message = std::mem::take(&mut self.message);
                        self.heard.push(Heard::Message(kind, message));
                    }
                }
                Some(Event::Ping(payload)) => self
                    .heard
                    .push(Heard::Control(Control::Ping(payload.to_vec()))),
                Some(Event::Pong(payload)) => self
                    .heard
                    .push(Heard::Control(Control::Pong(payload.to_vec()))),
                Some(Event::Close(reason)) => self.heard.push(Heard::Close(
                    reason.map(|reason| (reason.code, reason.reason)),
                )),
                None => assert_eq!(taken, input.len(), "input is left without an event"),
            }
            input = &mut input[taken..];
        }
        Ok(())
    }

    /// All that can be told apart from outside after `parts`.
    fn outcome(role: Role, parts: &[&[u8]]) -> (Vec<Heard>, Vec<u8>, Result<(), ProtocolError>) {
        let mut receiver = Self::new(role);
        let result = parts.iter().try_for_each(|part| receiver.hear(part));
        (receiver.heard, receiver.message, result)
    }
}

fn cut<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let mut parts = Vec::new();
    let mut start = 0;
    for cut in cuts {
        parts.push(&bytes[start..cut]);
        start = cut;
    }
    parts.push(&bytes[start..]);
    parts
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..300),
        // The borders of the 16-bit length.
        1 => (65_530_usize..65_545, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]
}

fn controls() -> impl Strategy<Value = Control> {
    let payload = prop::collection::vec(any::<u8>(), 0..=125);
    (any::<bool>(), payload).prop_map(|(ping, payload)| {
        if ping {
            Control::Ping(payload)
        } else {
            Control::Pong(payload)
        }
    })
}

fn sayings() -> impl Strategy<Value = Saying> {
    let kind = prop_oneof![Just(MessageKind::Text), Just(MessageKind::Binary)];
    let message = (
        kind,
        payloads(),
        prop::collection::vec(any::<Index>(), 0..5),
        prop::collection::vec(controls(), 0..5),
    )
        .prop_map(|(kind, payload, cuts, between)| Saying::Message {
            kind,
            payload,
            cuts,
            between,
        });
    prop_oneof![3 => message, 1 => controls().prop_map(Saying::Control)]
}

fn roles() -> impl Strategy<Value = (Role, Role)> {
    prop_oneof![
        Just((Role::Client, Role::Server)),
        Just((Role::Server, Role::Client))
    ]
}

proptest! {
    #[test]
    fn what_one_says_the_other_hears(
        (sender, receiver) in roles(),
        sayings in prop::collection::vec(sayings(), 0..8),
        close in prop::option::of((3000_u16..5000, "\\PC{0,40}")),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
    ) {
        let mut sender = Sender::new(sender);
        let mut expected = Vec::new();
        for saying in &sayings {
            sender.say(saying, &mut expected);
        }
        let key = sender.key();
        match &close {
            Some((code, reason)) => encode_close(&mut sender.sent, Some(*code), reason, key),
            None => encode_close(&mut sender.sent, None, "", key),
        }
        expected.push(Heard::Close(close.map(|(code, reason)| {
            let mut reason = reason;
            while reason.len() > 123 {
                reason.pop();
            }
            (code, reason)
        })));

        let (heard, rest, result) = Receiver::outcome(receiver, &cut(&sender.sent, &cuts));
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(heard, expected);
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn one_byte_at_a_time_is_heard_just_the_same(
        (sender, receiver) in roles(),
        sayings in prop::collection::vec(sayings(), 0..3),
    ) {
        let mut sender = Sender::new(sender);
        let mut expected = Vec::new();
        for saying in &sayings {
            sender.say(saying, &mut expected);
        }
        let parts: Vec<_> = sender.sent.chunks(1).collect();
        let (heard, _, result) = Receiver::outcome(receiver, &parts);
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(heard, expected);
    }

    /// The bytes heard before an error, and the error itself, are the same however the stream is cut.
    #[test]
    fn a_damaged_stream_is_refused_at_the_same_place_however_it_is_cut(
        (sender, receiver) in roles(),
        sayings in prop::collection::vec(sayings(), 1..5),
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        cuts in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let mut sender = Sender::new(sender);
        for saying in &sayings {
            sender.say(saying, &mut Vec::new());
        }
        for (place, byte) in damage {
            let place = place.index(sender.sent.len());
            sender.sent[place] ^= byte;
        }
        let whole = Receiver::outcome(receiver, &[&sender.sent]);
        let split = Receiver::outcome(receiver, &cut(&sender.sent, &cuts));
        prop_assert_eq!(whole, split);
    }

    #[test]
    fn bytes_of_any_kind_are_heard_or_refused_alike_however_they_are_cut(
        role in prop_oneof![Just(Role::Client), Just(Role::Server)],
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        mend: bool,
        cuts in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        // Most random bytes fail at the first; let some come further.
        if mend && bytes.len() > MAX_HEADER {
            bytes[0] &= 0x8f;
            bytes[1] = if role == Role::Server { bytes[1] | 0x80 } else { bytes[1] & 0x7f };
        }
        let whole = Receiver::outcome(role, &[&bytes]);
        let split = Receiver::outcome(role, &cut(&bytes, &cuts));
        prop_assert_eq!(whole, split);
    }
}
