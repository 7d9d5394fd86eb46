use crate::{ProtocolError, mask};

/// The longest frame header: 2 bytes, a 64-bit length, a masking key (RFC 6455 section 5.2).
pub const MAX_HEADER: usize = 14;

/// The longest payload of a control frame (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASK: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// Which side of the connection *we* are. A client masks all it sends; a server takes masked frames only (RFC 6455 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// We opened the connection.
    Client,
    /// We accepted it.
    Server,
}

/// A frame's operation code (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// A further fragment of the message under way.
    Continuation = 0x0,
    /// A text message, or its first fragment.
    Text = 0x1,
    /// A binary message, or its first fragment.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping, or comes unasked as a sign of life.
    Pong = 0xa,
}

impl OpCode {
    /// Whether frames of this kind stand between the fragments of messages: close, ping, pong (section 5.5).
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

impl TryFrom<u8> for OpCode {
    type Error = ProtocolError;

    fn try_from(code: u8) -> Result<Self, ProtocolError> {
        Ok(match code {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return Err(ProtocolError::UnknownOpCode(code)),
        })
    }
}

/// The length of the header that [`encode_header`] writes for a payload of `payload_len` bytes sent by `role`.
#[inline]
pub fn header_len(role: Role, payload_len: usize) -> usize {
    let length = match payload_len {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    match role {
        Role::Client => length + 4,
        Role::Server => length,
    }
}

/// Writes a frame header into the front of `out` and returns its length, which is [`header_len`]'s.
///
/// `mask` is the masking key, `Some` for clients alone; the payload behind the header is for the caller to [`mask()`].
/// Section 5.3 asks for a fresh key, unpredictable to the peer's applications, in every frame.
///
/// # Panics
/// If `out` is shorter than the header.
#[inline]
pub fn encode_header(
    out: &mut [u8],
    opcode: OpCode,
    fin: bool,
    payload_len: usize,
    mask: Option<[u8; 4]>,
) -> usize {
    let masked = if mask.is_some() { MASK } else { 0 };
    let first = opcode as u8 | if fin { FIN } else { 0 };
    match payload_len {
        0..=125 => put_header(out, [first, masked | payload_len as u8], mask),
        126..=0xffff => {
            let [a, b] = (payload_len as u16).to_be_bytes();
            put_header(out, [first, masked | LENGTH_16, a, b], mask)
        }
        _ => {
            let [a, b, c, d, e, f, g, h] = (payload_len as u64).to_be_bytes();
            let header = [first, masked | LENGTH_64, a, b, c, d, e, f, g, h];
            put_header(out, header, mask)
        }
    }
}

#[inline]
fn put_header<const N: usize>(out: &mut [u8], header: [u8; N], mask: Option<[u8; 4]>) -> usize {
    let len = if mask.is_some() { N + 4 } else { N };
    assert!(out.len() >= len, "no room for a frame header");
    if let Some((front, rest)) = out.split_first_chunk_mut() {
        *front = header;
        if let (Some(key), Some(place)) = (mask, rest.first_chunk_mut()) {
            *place = key;
        }
    }
    len
}

/// Appends a whole frame, FIN set, with a copy of `payload`, masked when there is a key: for messages of one small frame.
pub fn encode_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], mask: Option<[u8; 4]>) {
    let mut header = [0; MAX_HEADER];
    let len = encode_header(&mut header, opcode, true, payload.len(), mask);
    out.reserve(len + payload.len());
    out.extend_from_slice(header.get(..len).unwrap_or_default());
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        mask::mask(out.get_mut(start..).unwrap_or_default(), key, 0);
    }
}

/// Appends a ping or pong (or a close whose payload is made already; see [`encode_close`](crate::encode_close)).
///
/// # Panics
/// If `opcode` is not a control frame's, or `payload` is longer than [`MAX_CONTROL_PAYLOAD`].
pub fn encode_control(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], mask: Option<[u8; 4]>) {
    assert!(opcode.is_control(), "{opcode:?} is not a control frame");
    assert!(
        payload.len() <= MAX_CONTROL_PAYLOAD,
        "a control frame holds 125 bytes"
    );
    encode_frame(out, opcode, payload, mask);
}

/// A frame header as it was received, checked on its own (not against the frames before it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) fin: bool,
    pub(crate) opcode: OpCode,
    pub(crate) payload_len: u64,
    /// All zero on unmasked frames: XOR with it changes nothing.
    pub(crate) key: [u8; 4],
}

impl Header {
    /// Reads the header at the front of `input`, received by `role`: it and its length, or `None` while bytes are
    /// missing. A bad header is found as soon as the bytes that make it bad are there.
    #[inline]
    pub(crate) fn parse(role: Role, input: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let &[first, second, ref rest @ ..] = input else {
            return Ok(None);
        };
        if first & RSV != 0 {
            return Err(ProtocolError::ReservedBits((first & RSV) >> 4));
        }
        let fin = first & FIN != 0;
        let opcode = OpCode::try_from(first & OPCODE)?;
        let masked = second & MASK != 0;
        match role {
            Role::Server if !masked => return Err(ProtocolError::MaskMissing),
            Role::Client if masked => return Err(ProtocolError::MaskUnexpected),
            _ => {}
        }
        let length = second & LENGTH;
        if opcode.is_control() {
            if !fin {
                return Err(ProtocolError::FragmentedControl(opcode));
            }
            if usize::from(length) > MAX_CONTROL_PAYLOAD {
                return Err(ProtocolError::ControlTooLong(opcode));
            }
        }

        let (payload_len, rest) = match length {
            LENGTH_16 => {
                let Some((bytes, rest)) = rest.split_first_chunk() else {
                    return Ok(None);
                };
                let length = u64::from(u16::from_be_bytes(*bytes));
                if length < u64::from(LENGTH_16) {
                    return Err(ProtocolError::LengthNotMinimal(length));
                }
                (length, rest)
            }
            LENGTH_64 => {
                let Some((bytes, rest)) = rest.split_first_chunk() else {
                    return Ok(None);
                };
                let length = u64::from_be_bytes(*bytes);
                if length > i64::MAX as u64 {
                    return Err(ProtocolError::LengthTooLarge(length));
                }
                if length <= u64::from(u16::MAX) {
                    return Err(ProtocolError::LengthNotMinimal(length));
                }
                (length, rest)
            }
            short => (u64::from(short), rest),
        };
        let (key, rest) = if masked {
            let Some((key, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            (*key, rest)
        } else {
            ([0; 4], rest)
        };
        let header = Self {
            fin,
            opcode,
            payload_len,
            key,
        };
        Ok(Some((header, input.len() - rest.len())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(role: Role, bytes: &[u8]) -> Result<Option<(Header, usize)>, ProtocolError> {
        Header::parse(role, bytes)
    }

    #[test]
    fn the_examples_of_section_5_7_are_written_as_printed() {
        let mut out = Vec::new();
        encode_frame(&mut out, OpCode::Text, b"Hello", None);
        assert_eq!(out, b"\x81\x05Hello");

        out.clear();
        encode_frame(
            &mut out,
            OpCode::Text,
            b"Hello",
            Some([0x37, 0xfa, 0x21, 0x3d]),
        );
        assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");

        out.clear();
        encode_control(&mut out, OpCode::Ping, b"Hello", None);
        assert_eq!(out, b"\x89\x05Hello");

        let mut header = [0; MAX_HEADER];
        assert_eq!(encode_header(&mut header, OpCode::Text, false, 3, None), 2);
        assert_eq!(header[..2], *b"\x01\x03");
        assert_eq!(
            encode_header(&mut header, OpCode::Binary, true, 256, None),
            4
        );
        assert_eq!(header[..4], *b"\x82\x7e\x01\x00");
        assert_eq!(
            encode_header(&mut header, OpCode::Binary, true, 65536, None),
            10
        );
        assert_eq!(header[..10], *b"\x82\x7f\0\0\0\0\0\x01\0\0");
    }

    #[test]
    fn reserved_bits_are_refused() {
        for (first, bits) in [(0xc2, 0b100), (0xa2, 0b010), (0x92, 0b001), (0xf2, 0b111)] {
            assert_eq!(
                parse(Role::Client, &[first, 0]),
                Err(ProtocolError::ReservedBits(bits))
            );
        }
    }

    #[test]
    fn every_reserved_operation_code_is_refused() {
        for code in (0x3..=0x7).chain(0xb..=0xf) {
            assert_eq!(
                parse(Role::Client, &[0x80 | code, 0]),
                Err(ProtocolError::UnknownOpCode(code))
            );
        }
    }

    #[test]
    fn a_client_that_does_not_mask_is_refused() {
        assert_eq!(
            parse(Role::Server, &[0x82, 0x05]),
            Err(ProtocolError::MaskMissing)
        );
    }

    #[test]
    fn a_server_that_masks_is_refused() {
        assert_eq!(
            parse(Role::Client, &[0x82, 0x85]),
            Err(ProtocolError::MaskUnexpected)
        );
    }

    #[test]
    fn control_frames_are_neither_fragmented_nor_long() {
        for opcode in [OpCode::Close, OpCode::Ping, OpCode::Pong] {
            assert_eq!(
                parse(Role::Client, &[opcode as u8, 0]),
                Err(ProtocolError::FragmentedControl(opcode))
            );
            for length in [126, 127] {
                assert_eq!(
                    parse(Role::Client, &[0x80 | opcode as u8, length]),
                    Err(ProtocolError::ControlTooLong(opcode))
                );
            }
        }
    }

    #[test]
    fn lengths_in_more_bytes_than_needed_are_refused() {
        assert_eq!(
            parse(Role::Client, &[0x82, 126, 0, 125]),
            Err(ProtocolError::LengthNotMinimal(125))
        );
        assert_eq!(
            parse(Role::Client, &[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
            Err(ProtocolError::LengthNotMinimal(65535))
        );
    }

    #[test]
    fn lengths_beyond_63_bits_are_refused() {
        assert_eq!(
            parse(Role::Client, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            Err(ProtocolError::LengthTooLarge(1 << 63))
        );
        let longest = [0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let (header, _) = parse(Role::Client, &longest).unwrap().unwrap();
        assert_eq!(header.payload_len, i64::MAX as u64);
    }

    #[test]
    #[should_panic(expected = "a control frame holds 125 bytes")]
    fn a_ping_of_our_own_that_no_peer_may_accept_is_not_sent() {
        encode_control(&mut Vec::new(), OpCode::Ping, &[0; 126], None);
    }

    fn opcodes() -> impl Strategy<Value = OpCode> {
        prop::sample::select(&[OpCode::Continuation, OpCode::Text, OpCode::Binary][..])
    }

    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![
            0_usize..=300,
            65_000_usize..=66_000,
            any::<usize>().prop_map(|length| length >> 1)
        ]
    }

    proptest! {
        #[test]
        fn a_written_header_is_read_back_and_no_shorter_part_of_it_is(
            opcode in opcodes(),
            fin: bool,
            length in lengths(),
            key: Option<[u8; 4]>,
        ) {
            let (sender, receiver) = match key {
                Some(_) => (Role::Client, Role::Server),
                None => (Role::Server, Role::Client),
            };
            let mut out = [0; MAX_HEADER];
            let len = encode_header(&mut out, opcode, fin, length, key);
            prop_assert_eq!(len, header_len(sender, length));
            for part in 0..len {
                prop_assert_eq!(parse(receiver, &out[..part]), Ok(None));
            }
            let expected = Header {
                fin,
                opcode,
                payload_len: length as u64,
                key: key.unwrap_or_default(),
            };
            prop_assert_eq!(parse(receiver, &out), Ok(Some((expected, len))));
        }
    }
}
