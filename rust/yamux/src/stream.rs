//! One stream: what is open, what may be sent, what is still to be said about it.

use crate::frame::{Flags, HEADER_LEN, Header, INITIAL_WINDOW, Kind, StreamId};
use crate::window::ReceiveWindow;

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) receive: ReceiveWindow,
    /// What we may still send.
    pub(crate) send_window: u32,
    /// Where in the send window the peer gives back what it has read; 0: not known.
    send_half: u32,
    rest: Rest,
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

/// At half of the send window the stream rests for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Due,
    Now,
    Over,
}

/// What may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// So many bytes.
    Bytes(u32),
    /// Nothing for a moment, which begins now.
    Rest,
}

impl Stream {
    pub(crate) fn opened() -> Self {
        Self::new(Flags::SYN)
    }

    pub(crate) fn accepted(extra_window: u32) -> Self {
        let mut stream = Self::new(Flags::ACK);
        stream.introduced(extra_window);
        stream
    }

    /// The first frame of the peer, which gave us `extra_window` on top of what every stream has.
    ///
    /// That is how hashicorp's implementation begins where its windows are larger; others give back no more than they have read.
    /// Afterwards it gives back what was read once this is half of such a window. If a read ends just there, the other half is
    /// given back when that has been read. If it went beyond, what is left is too little, and until more comes it is held
    /// back: then only half a window is on its way at a time. So a frame ends there, and on a long path a rest lets the peer
    /// read up to it.
    pub(crate) fn introduced(&mut self, extra_window: u32) {
        self.grant(extra_window);
        if extra_window > INITIAL_WINDOW {
            self.send_half = INITIAL_WINDOW.saturating_add(extra_window) / 2;
        }
    }

    /// The peer gave us more to send.
    pub(crate) fn grant(&mut self, credit: u32) {
        // More than 4 GiB is never used: to count less than was granted is always right.
        self.send_window = self.send_window.saturating_add(credit);
    }

    /// How much may be sent before a frame has to end; with `rests` at half of the window nothing for a moment.
    pub(crate) fn room(&mut self, rests: bool) -> Room {
        if self.sending != Sending::Open {
            return Room::Bytes(0);
        }
        if self.send_window > self.send_half {
            return Room::Bytes(self.send_window - self.send_half);
        }
        if self.send_window == self.send_half && self.send_half > 0 {
            match self.rest {
                Rest::Due if rests => {
                    self.rest = Rest::Now;
                    return Room::Rest;
                }
                Rest::Now => return Room::Bytes(0),
                Rest::Due | Rest::Over => {}
            }
        }
        Room::Bytes(self.send_window)
    }

    /// True if the stream was at rest, and may go on.
    pub(crate) fn rested(&mut self) -> bool {
        let resting = self.rest == Rest::Now && self.sending == Sending::Open;
        if resting {
            self.rest = Rest::Over;
        }
        resting
    }

    fn new(introduction: Flags) -> Self {
        Self {
            receive: ReceiveWindow::new(),
            send_window: INITIAL_WINDOW,
            send_half: 0,
            rest: Rest::Due,
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
        self.rest = Rest::Due;
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
            // With the acknowledgement, if that has not gone: without it, this would say that the stream was refused.
            flags = flags.with(Flags::RST);
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
