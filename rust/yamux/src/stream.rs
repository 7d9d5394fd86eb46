//! One stream: what is open, what is still to be said about it.

use crate::frame::{Flags, HEADER_LEN, Header, INITIAL_WINDOW, Kind, StreamId};
use crate::window::ReceiveWindow;

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) receive: ReceiveWindow,
    /// What we may still send.
    pub(crate) send_window: u32,
    /// SYN on a stream that we opened, ACK on one that the peer opened, until a frame has carried it.
    introduction: Flags,
    /// We opened it, and the peer has not shown that it knows.
    pub(crate) unacknowledged: bool,
    pub(crate) sending: Sending,
    /// The peer ended its direction, by FIN or RST, and that was reported.
    pub(crate) receive_ended: bool,
    /// It is in the connection's queue of streams with something to say.
    pub(crate) queued: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    Open,
    FinDue,
    /// FIN sent, or the peer's RST received.
    Ended,
    /// The stream is dead but for the RST to be sent.
    ResetDue,
}

impl Stream {
    pub(crate) fn opened() -> Self {
        Self::new(Flags::SYN)
    }

    pub(crate) fn accepted(extra_window: u32) -> Self {
        let mut stream = Self::new(Flags::ACK);
        stream.send_window = stream.send_window.saturating_add(extra_window);
        stream
    }

    fn new(introduction: Flags) -> Self {
        Self {
            receive: ReceiveWindow::new(),
            send_window: INITIAL_WINDOW,
            introduction,
            unacknowledged: introduction == Flags::SYN,
            sending: Sending::Open,
            receive_ended: false,
            queued: false,
        }
    }

    /// The peer does not know of the stream yet.
    pub(crate) fn unannounced(&self) -> bool {
        self.introduction == Flags::SYN
    }

    /// The header of a data frame.
    pub(crate) fn data_header(&mut self, id: StreamId, length: u32) -> [u8; HEADER_LEN] {
        self.send_window = self.send_window.saturating_sub(length);
        Header {
            kind: Kind::Data,
            flags: std::mem::take(&mut self.introduction),
            stream: id.value(),
            length,
        }
        .encode()
    }

    /// The control frame that says everything there is to say.
    pub(crate) fn poll_control(&mut self, id: StreamId) -> Option<[u8; HEADER_LEN]> {
        self.queued = false;
        let mut flags = std::mem::take(&mut self.introduction);
        let mut credit = 0;
        if self.sending == Sending::ResetDue {
            self.sending = Sending::Ended;
            flags = Flags::RST;
        } else {
            if self.sending == Sending::FinDue {
                self.sending = Sending::Ended;
                flags = flags.with(Flags::FIN);
            }
            if !self.receive_ended {
                credit = self.receive.grant();
            }
        }
        (!flags.is_empty() || credit > 0).then(|| {
            Header {
                kind: Kind::WindowUpdate,
                flags,
                stream: id.value(),
                length: credit,
            }
            .encode()
        })
    }

    /// Nothing can happen to the stream any more.
    pub(crate) fn is_over(&self) -> bool {
        self.sending == Sending::Ended && self.receive_ended && self.receive.held() == 0
    }
}
