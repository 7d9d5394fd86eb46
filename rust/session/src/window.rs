//! The windows of simple mode: how many bytes each side takes from the other. A server announces that it has them, because TCP
//! does not tell it, as a Worker, what waits for its client.

/// In front of a text that says how many more bytes its sender takes.
const WORD: &[u8] = b"WINDOW:";
/// What a client may send before the server has said how much it takes: the first window of a stream in yamux mode, too.
const INITIAL: usize = 256 * 1024;

/// Both windows of a connection, as one of its sides sees them.
#[derive(Debug)]
pub(crate) struct Windows {
    /// Bytes that this side takes at a time.
    size: usize,
    /// Bytes that the peer takes yet. `None`: a client that has not said so has no window.
    room: Option<usize>,
    /// Bytes that this side takes and has not told the peer of.
    untold: usize,
}

impl Windows {
    pub(crate) const fn client(size: usize) -> Self {
        Self {
            size,
            room: Some(INITIAL),
            untold: size,
        }
    }

    pub(crate) const fn server(size: usize) -> Self {
        Self {
            size,
            room: None,
            untold: size.saturating_sub(INITIAL),
        }
    }

    /// How many bytes may be sent.
    pub(crate) fn room(&self) -> usize {
        self.room.unwrap_or(usize::MAX)
    }

    pub(crate) fn note_sent(&mut self, bytes: usize) {
        if let Some(room) = &mut self.room {
            *room = room.saturating_sub(bytes);
        }
    }

    /// Bytes of the peer have reached their end.
    pub(crate) fn note_taken(&mut self, bytes: usize) {
        // A peer without a window does not count them.
        if self.room.is_some() {
            self.untold = self.untold.saturating_add(bytes);
        }
    }

    /// So much is untold that an update is worth a message.
    pub(crate) const fn is_update_due(&self) -> bool {
        self.room.is_some() && self.untold > 0 && self.untold >= self.size / 4
    }

    /// The text that tells the peer of it.
    pub(crate) fn update(&mut self) -> Vec<u8> {
        let untold = std::mem::take(&mut self.untold);
        [WORD, untold.to_string().as_bytes()].concat()
    }

    /// Whether the text is one of these, which counts from now on.
    pub(crate) fn receive(&mut self, text: &[u8]) -> bool {
        let Some(more) = text.strip_prefix(WORD).and_then(number) else {
            return false;
        };
        self.room = Some(self.room.unwrap_or(0).saturating_add(more));
        true
    }
}

/// At most nine digits and nothing else.
fn number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_send_256_kib_until_the_server_says_more() {
        let mut client = Windows::client(1000);
        assert_eq!(client.room(), INITIAL);
        client.note_sent(INITIAL);
        assert_eq!(client.room(), 0);
        assert!(client.receive(b"WINDOW:70"));
        assert!(client.receive(b"WINDOW:7"));
        assert_eq!(client.room(), 77);
    }

    #[test]
    fn a_server_has_windows_from_the_clients_first_update_on() {
        let size = INITIAL + 1000;
        let mut server = Windows::server(size);
        assert_eq!(server.room(), usize::MAX);
        server.note_sent(1 << 30);
        server.note_taken(5000);
        assert!(!server.is_update_due());
        assert!(server.receive(b"WINDOW:4000"));
        assert_eq!(server.room(), 4000);
        server.note_taken(size / 4);
        assert_eq!(
            server.update(),
            format!("WINDOW:{}", 1000 + size / 4).as_bytes()
        );
    }

    #[test]
    fn an_update_is_sent_for_each_quarter_that_was_taken() {
        let mut client = Windows::client(1000);
        assert!(client.is_update_due());
        assert_eq!(client.update(), b"WINDOW:1000");
        client.note_taken(249);
        assert!(!client.is_update_due());
        client.note_taken(1);
        assert!(client.is_update_due());
        assert_eq!(client.update(), b"WINDOW:250");
        assert!(!client.is_update_due());
    }

    #[test]
    fn other_texts_change_nothing() {
        let mut client = Windows::client(1000);
        for text in [
            "",
            "WINDOW",
            "WINDOW:",
            "WINDOW:x",
            "WINDOW:-1",
            "WINDOW:+1",
            "WINDOW: 1",
            "WINDOW:1 ",
            "WINDOW:1234567890",
            "window:1",
            "FIN",
        ] {
            assert!(!client.receive(text.as_bytes()), "{text}");
        }
        assert_eq!(client.room(), INITIAL);
        let mut server = Windows::server(1000);
        for _ in 0..3 {
            assert!(server.receive(b"WINDOW:999999999"));
        }
        assert_eq!(server.room(), 3 * 999_999_999);
    }
}
