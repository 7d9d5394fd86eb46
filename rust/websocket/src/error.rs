use thiserror::Error;

use crate::{CloseReason, OpCode};

/// What a peer did against RFC 6455. The connection cannot go on: send a close frame with [`close_code`](Self::close_code) and drop it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// RSV1 to RSV3 are for extensions, and none was agreed (section 5.2).
    #[error("reserved bits {0:#05b} set in a frame header without an extension")]
    ReservedBits(u8),
    /// An operation code that RFC 6455 reserves (section 5.2).
    #[error("unknown operation code {0:#x}")]
    UnknownOpCode(u8),
    /// A control frame without FIN (section 5.5).
    #[error("fragmented {0:?} frame")]
    FragmentedControl(OpCode),
    /// A control frame with more than 125 bytes of payload (section 5.5).
    #[error("{0:?} frame with more than 125 bytes of payload")]
    ControlTooLong(OpCode),
    /// A client's frame that is not masked (section 5.1).
    #[error("unmasked frame from a client")]
    MaskMissing,
    /// A server's frame that is masked (section 5.1).
    #[error("masked frame from a server")]
    MaskUnexpected,
    /// A payload length in more bytes than it needs (section 5.2).
    #[error("payload length {0} not in its shortest form")]
    LengthNotMinimal(u64),
    /// A payload length with the most significant of its 64 bits set (section 5.2).
    #[error("payload length {0} beyond 63 bits")]
    LengthTooLarge(u64),
    /// A continuation frame while no message is under way (section 5.4).
    #[error("continuation frame without a message to continue")]
    UnexpectedContinuation,
    /// A new message before the last fragment of the one under way (section 5.4).
    #[error("{0:?} frame inside a fragmented message")]
    ExpectedContinuation(OpCode),
    /// A close frame with one byte of payload, which cannot hold a code (section 5.5.1).
    #[error("close frame with one byte of payload")]
    CloseTooShort,
    /// A code that must not be sent in a close frame (section 7.4).
    #[error("close frame with the invalid code {0}")]
    CloseCode(u16),
    /// A reason that is not UTF-8 (section 5.5.1).
    #[error("close frame with a reason that is not UTF-8")]
    CloseReasonUtf8,
}

impl ProtocolError {
    /// The code for the close frame that answers this error (section 7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::CloseReasonUtf8 => CloseReason::INVALID_PAYLOAD,
            _ => CloseReason::PROTOCOL_ERROR,
        }
    }
}
