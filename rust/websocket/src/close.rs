use crate::{MAX_CONTROL_PAYLOAD, OpCode, ProtocolError, encode_control};

/// Why a connection is closed: the payload of a close frame (RFC 6455 section 5.5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// One of the codes of section 7.4, as registered with IANA.
    pub code: u16,
    /// Text for a developer to read, often empty.
    pub reason: String,
}

impl CloseReason {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: u16 = 1000;
    /// The endpoint goes away: a server that stops, a page that is left.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// A kind of data that the endpoint cannot take.
    pub const UNSUPPORTED_DATA: u16 = 1003;
    /// Data that does not fit its kind, such as text that is not UTF-8.
    pub const INVALID_PAYLOAD: u16 = 1007;
    /// The endpoint's policy forbids what the peer did.
    pub const POLICY_VIOLATION: u16 = 1008;
    /// A message too large to take.
    pub const MESSAGE_TOO_BIG: u16 = 1009;
    /// The server failed.
    pub const INTERNAL_ERROR: u16 = 1011;
    /// The service is restarted; reconnect.
    pub const SERVICE_RESTART: u16 = 1012;
    /// The service is overloaded; reconnect later or elsewhere.
    pub const TRY_AGAIN_LATER: u16 = 1013;

    /// Reads a close frame's payload, which may be empty: then there is no reason.
    pub(crate) fn parse(payload: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let Some((code, reason)) = payload.split_first_chunk() else {
            return match payload {
                [] => Ok(None),
                _ => Err(ProtocolError::CloseTooShort),
            };
        };
        let reason = str::from_utf8(reason).map_err(|_| ProtocolError::CloseReasonUtf8)?;
        let code = u16::from_be_bytes(*code);
        if !may_be_sent(code) {
            return Err(ProtocolError::CloseCode(code));
        }
        Ok(Some(Self {
            code,
            reason: reason.to_owned(),
        }))
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.reason.is_empty() {
            // The peer chose the text: it must not write escape sequences into someone's terminal.
            write!(f, " {:?}", self.reason)?;
        }
        Ok(())
    }
}

/// Appends a close frame. A reason of more than 123 bytes is cut off at a character's border. Without a code there is
/// no reason either: an empty close frame.
pub fn encode_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str, mask: Option<[u8; 4]>) {
    let mut payload = Vec::with_capacity(MAX_CONTROL_PAYLOAD);
    if let Some(code) = code {
        let mut end = reason.len().min(MAX_CONTROL_PAYLOAD - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.get(..end).unwrap_or_default().as_bytes());
    }
    encode_control(out, OpCode::Close, &payload, mask);
}

/// Section 7.4 and the IANA registry: 1004 is reserved; 1005, 1006 and 1015 only name what did *not* come in a frame.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_without_a_code_is_no_error() {
        assert_eq!(CloseReason::parse(b""), Ok(None));
    }

    #[test]
    fn half_a_code_is_refused() {
        assert_eq!(
            CloseReason::parse(b"\x03"),
            Err(ProtocolError::CloseTooShort)
        );
    }

    #[test]
    fn codes_that_must_not_be_sent_are_refused() {
        for code in [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ] {
            assert_eq!(
                CloseReason::parse(&u16::to_be_bytes(code)),
                Err(ProtocolError::CloseCode(code))
            );
        }
    }

    #[test]
    fn codes_in_use_are_accepted() {
        for code in (1000..=1003).chain(1007..=1014).chain([3000, 4000, 4999]) {
            let reason = CloseReason::parse(&u16::to_be_bytes(code))
                .unwrap()
                .unwrap();
            assert_eq!(reason.code, code);
        }
    }

    #[test]
    fn a_reason_that_is_not_utf8_is_refused() {
        let error = CloseReason::parse(b"\x03\xe8\xff").unwrap_err();
        assert_eq!(error, ProtocolError::CloseReasonUtf8);
        assert_eq!(error.close_code(), 1007);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut out = Vec::new();
        let reason = "é".repeat(80);
        encode_close(&mut out, Some(CloseReason::GOING_AWAY), &reason, None);
        assert_eq!(out[..2], [0x88, 124]);
        let read = CloseReason::parse(&out[2..]).unwrap().unwrap();
        assert_eq!(read.code, 1001);
        assert_eq!(read.reason, "é".repeat(61));
    }

    #[test]
    fn a_peers_reason_cannot_write_control_characters_into_the_log() {
        let reason = CloseReason {
            code: 1000,
            reason: "\u{1b}[2J\n".into(),
        };
        assert_eq!(reason.to_string(), r#"1000 "\u{1b}[2J\n""#);
    }
}
