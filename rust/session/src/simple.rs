//! Simple mode's protocol: one stream on a connection of its own. Texts control it, binary messages carry its bytes.
//!
//! The deployed form begins with `CONNECT:host:port|`, is answered with `CONNECTED` or `ERROR:reason`, and ends in both
//! directions with `CLOSE`. The extended form is used only with a server that announced `simple-open` in its 101: it begins
//! with `OPEN:host:port`, bytes may follow at once, a failure is `FAILED:word:reason`, and `FIN` ends one direction. With a
//! server that announced `simple-window`, too, each side says by `WINDOW:n` how many bytes it takes.

use std::collections::VecDeque;

use ech_workers_yamux::StreamId;

use crate::end::{Refusal, Status};
use crate::window::Windows;
use crate::wire_event::WireEvent;

/// A control text is a word and at most a reason.
const TEXT_MAX: usize = 4096;
/// The answer to a keep-alive text, of which one waits at a time. All other texts are sent once.
const PONG: &[u8] = b"PONG";
/// The text that ends the connection. A deployed server takes a binary message of just these bytes for it, too.
pub(crate) const CLOSE: &[u8] = b"CLOSE";

/// The only stream of the session.
pub(crate) const STREAM: StreamId = match StreamId::new(1) {
    Some(id) => id,
    None => unreachable!(),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request was sent or received yet.
    Idle,
    /// The request is under way, or its target is being connected.
    Requested,
    /// The answer was given.
    Connected,
    /// Both directions have ended, or the connection was given up.
    Over,
}

/// One side of a connection in simple mode.
#[derive(Debug)]
pub(crate) struct Simple {
    client: bool,
    /// The extended form is spoken. On a server that depends on the request.
    extended: bool,
    /// The server announced them. They count in the extended form alone.
    windows: Option<Windows>,
    phase: Phase,
    /// A text that has not ended yet.
    partial: Vec<u8>,
    texts: VecDeque<Vec<u8>>,
    sent_end: bool,
    received_end: bool,
}

impl Simple {
    /// window: bytes that this side takes at a time from a peer that has a window, too.
    pub(crate) fn new(client: bool, extended: bool, window: Option<usize>) -> Self {
        let windows = match window {
            Some(size) if client && extended => Some(Windows::client(size)),
            Some(size) if !client => Some(Windows::server(size)),
            _ => None,
        };
        Self {
            client,
            extended,
            windows,
            phase: Phase::Idle,
            partial: Vec::new(),
            texts: VecDeque::new(),
            sent_end: false,
            received_end: false,
        }
    }

    /// Client: asks for the target. False if the connection was used before.
    pub(crate) fn open(&mut self, authority: &[u8]) -> bool {
        if self.phase != Phase::Idle {
            return false;
        }
        self.phase = Phase::Requested;
        // Before the request, so that the server knows it before the target's first byte.
        if let Some(windows) = &mut self.windows {
            let update = windows.update();
            self.push(update);
        }
        let mut request = if self.extended {
            b"OPEN:".to_vec()
        } else {
            b"CONNECT:".to_vec()
        };
        request.extend_from_slice(authority);
        if !self.extended {
            // The bar is always there and nothing follows it: a Worker would mangle bytes in a text.
            request.push(b'|');
        }
        self.push(request);
        true
    }

    /// Server: the target is connected, or not.
    pub(crate) fn answer(&mut self, outcome: &Refusal) {
        if self.phase != Phase::Requested {
            return;
        }
        if outcome.status == Status::Succeeded {
            self.phase = Phase::Connected;
            self.push(b"CONNECTED".to_vec());
            return;
        }
        self.phase = Phase::Over;
        self.sent_end = true;
        let reason = outcome.brief_reason();
        self.push(if self.extended {
            format!("FAILED:{}:{reason}", outcome.status.word()).into_bytes()
        } else {
            format!("ERROR:{reason}").into_bytes()
        });
    }

    /// Whether binary messages may be sent now.
    pub(crate) fn may_send(&self) -> bool {
        !self.sent_end
            && match self.phase {
                Phase::Connected => true,
                Phase::Requested => self.client && self.extended,
                Phase::Idle | Phase::Over => false,
            }
    }

    /// How many bytes may be sent now.
    pub(crate) fn room(&self) -> usize {
        if !self.may_send() {
            return 0;
        }
        self.windows.as_ref().map_or(usize::MAX, Windows::room)
    }

    /// So many bytes go to the peer.
    pub(crate) fn note_sent(&mut self, bytes: usize) {
        if let Some(windows) = &mut self.windows {
            windows.note_sent(bytes);
        }
    }

    /// The end took so many bytes of the peer.
    pub(crate) fn consumed(&mut self, bytes: usize) {
        if let Some(windows) = &mut self.windows {
            windows.note_taken(bytes);
        }
    }

    /// The peer is to be told how many more bytes are taken. A server of ours does so behind its answer.
    fn is_update_due(&self) -> bool {
        self.may_receive()
            && (self.client || self.phase == Phase::Connected)
            && self.windows.as_ref().is_some_and(Windows::is_update_due)
    }

    /// No more bytes go to the peer.
    pub(crate) fn finish(&mut self) {
        if self.sent_end || self.phase == Phase::Over {
            return;
        }
        self.sent_end = true;
        if self.extended {
            self.push(b"FIN".to_vec());
        } else {
            // In the deployed form it ends both directions.
            self.received_end = true;
            self.push(CLOSE.to_vec());
        }
        self.settle();
    }

    /// Gives the stream up: what ends the connection is not to look like the end of the data.
    pub(crate) fn reset(&mut self) {
        self.phase = Phase::Over;
    }

    /// The peer's bytes are of use.
    pub(crate) fn may_receive(&self) -> bool {
        !self.received_end && self.phase != Phase::Over && self.phase != Phase::Idle
    }

    /// The stream has ended in both directions, or was given up.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Nothing was asked for yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// The next text to send.
    pub(crate) fn poll_text(&mut self) -> Option<Vec<u8>> {
        if let Some(text) = self.texts.pop_front() {
            return Some(text);
        }
        // Not among the texts that wait: what is due grows meanwhile, and none of it may be lost.
        if !self.is_update_due() {
            return None;
        }
        self.windows.as_mut().map(Windows::update)
    }

    pub(crate) fn has_text(&self) -> bool {
        !self.texts.is_empty() || self.is_update_due()
    }

    /// The last text: deployed servers and Workers know the end of the connection by it.
    pub(crate) fn say_goodbye(&mut self) {
        if !self.extended && !self.sent_end && self.phase != Phase::Idle {
            self.sent_end = true;
            self.push(CLOSE.to_vec());
        }
    }

    /// The peer closed the connection under the stream, or at its end.
    pub(crate) fn closed(&mut self) -> Option<WireEvent> {
        if self.phase == Phase::Over || self.phase == Phase::Idle {
            return None;
        }
        // Nothing can be sent any more.
        self.phase = Phase::Over;
        self.sent_end = true;
        if self.extended {
            // It should have waited for both directions to end.
            return Some(WireEvent::Reset(STREAM));
        }
        let ended = std::mem::replace(&mut self.received_end, true);
        (!ended).then_some(WireEvent::Finished(STREAM))
    }

    /// A part of a text. `None`: it means nothing, or is not whole.
    ///
    /// # Errors
    /// It is longer than any text of the protocol.
    pub(crate) fn receive(
        &mut self,
        part: &[u8],
        end: bool,
    ) -> Result<Option<WireEvent>, &'static str> {
        if self.partial.len() + part.len() > TEXT_MAX {
            return Err("the peer sent a text of over 4 KiB");
        }
        self.partial.extend_from_slice(part);
        if !end {
            return Ok(None);
        }
        let text = std::mem::take(&mut self.partial);
        Ok(self.understand(&text))
    }

    fn understand(&mut self, text: &[u8]) -> Option<WireEvent> {
        if (self.extended || self.phase == Phase::Idle)
            && let Some(windows) = &mut self.windows
            && windows.receive(text)
        {
            return Some(WireEvent::Writable(STREAM));
        }
        match self.phase {
            Phase::Idle if !self.client => return self.requested(text),
            Phase::Requested if self.client => {
                if text == b"CONNECTED" {
                    self.phase = Phase::Connected;
                    return Some(WireEvent::Answered(
                        STREAM,
                        Refusal::new(Status::Succeeded, ""),
                    ));
                }
                if let Some(refusal) = refusal(text) {
                    self.phase = Phase::Over;
                    self.sent_end = true;
                    return Some(WireEvent::Answered(STREAM, refusal));
                }
                if text == CLOSE {
                    self.phase = Phase::Over;
                    self.sent_end = true;
                    let refusal = Refusal::new(Status::NoAnswer, "the server ended the connection");
                    return Some(WireEvent::Answered(STREAM, refusal));
                }
            }
            _ => {}
        }
        match text {
            b"FIN" if self.extended && !self.received_end => {
                self.received_end = true;
                self.settle();
                return Some(WireEvent::Finished(STREAM));
            }
            CLOSE if self.extended => {
                let cut = !self.received_end && self.phase != Phase::Over;
                self.phase = Phase::Over;
                return cut.then_some(WireEvent::Reset(STREAM));
            }
            CLOSE if !self.received_end => {
                self.received_end = true;
                self.settle();
                return Some(WireEvent::Finished(STREAM));
            }
            // Some Workers keep the connection alive with texts of their own.
            b"PING" if self.texts.iter().any(|text| text == PONG) => {}
            b"PING" => self.push(PONG.to_vec()),
            _ => tracing::debug!(
                "ignored a text of {} bytes that has no meaning here",
                text.len()
            ),
        }
        None
    }

    /// Server: the first text.
    fn requested(&mut self, text: &[u8]) -> Option<WireEvent> {
        self.phase = Phase::Requested;
        if let Some(authority) = text.strip_prefix(b"OPEN:") {
            self.extended = true;
            return Some(WireEvent::Requested(STREAM, authority.to_vec(), Vec::new()));
        }
        self.extended = false;
        self.windows = None;
        let request = text.strip_prefix(b"CONNECT:").and_then(|rest| {
            let bar = rest.iter().position(|&byte| byte == b'|')?;
            let (authority, behind) = rest.split_at(bar);
            // Deployed clients send nothing behind the bar; what another one does send is for the target.
            Some((authority.to_vec(), behind.get(1..).unwrap_or_default()))
        });
        match request {
            Some((authority, behind)) => {
                Some(WireEvent::Requested(STREAM, authority, behind.to_vec()))
            }
            None => {
                self.answer(&Refusal::new(
                    Status::General,
                    "expected CONNECT:host:port|",
                ));
                None
            }
        }
    }

    fn settle(&mut self) {
        if self.sent_end && self.received_end {
            self.phase = Phase::Over;
        }
    }

    fn push(&mut self, text: Vec<u8>) {
        self.texts.push_back(text);
    }
}

/// How many of these bytes may go as one binary message: not all of them, where a deployed server would take them for
/// the end.
pub(crate) fn sendable(bytes: &[u8]) -> usize {
    if bytes == CLOSE {
        CLOSE.len() - 1
    } else {
        bytes.len()
    }
}

const WORDS: [(Status, &str); 9] = [
    (Status::Refused, "refused"),
    (Status::TimedOut, "timed-out"),
    (Status::NameNotFound, "unknown-name"),
    (Status::NotAllowed, "not-allowed"),
    (Status::HostUnreachable, "host-unreachable"),
    (Status::NetworkUnreachable, "network-unreachable"),
    (Status::PlatformAddress, "platform-address"),
    (Status::SocketLimit, "socket-limit"),
    (Status::General, "failed"),
];

impl Status {
    /// Its word in simple mode's answers.
    pub fn word(self) -> &'static str {
        WORDS
            .iter()
            .find(|(of, _)| *of == self)
            .map_or("failed", |(_, word)| word)
    }
}

/// A refusal of either form.
fn refusal(text: &[u8]) -> Option<Refusal> {
    let text = String::from_utf8_lossy(text);
    if let Some(reason) = text.strip_prefix("ERROR:") {
        return Some(Refusal::new(Status::General, reason.trim()));
    }
    let (word, reason) = text.strip_prefix("FAILED:")?.split_once(':')?;
    let status = WORDS
        .iter()
        .find(|(_, of)| *of == word)
        .map_or(Status::General, |(status, _)| *status);
    Some(Refusal::new(status, reason.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(simple: &mut Simple, text: &str) -> Option<WireEvent> {
        simple.receive(text.as_bytes(), true).unwrap()
    }

    fn sent(simple: &mut Simple) -> Vec<String> {
        std::iter::from_fn(|| simple.poll_text())
            .map(|text| String::from_utf8(text).unwrap())
            .collect()
    }

    #[test]
    fn the_deployed_form_is_what_deployed_servers_and_workers_speak() {
        let mut client = Simple::new(true, false, None);
        assert!(client.open(b"a.test:443"));
        assert!(!client.open(b"b.test:443"));
        assert_eq!(sent(&mut client), ["CONNECT:a.test:443|"]);
        assert!(!client.may_send());
        assert!(matches!(
            text(&mut client, "CONNECTED"),
            Some(WireEvent::Answered(_, refusal)) if refusal.status == Status::Succeeded
        ));
        assert!(client.may_send());
        assert_eq!(
            text(&mut client, "CLOSE"),
            Some(WireEvent::Finished(STREAM))
        );
        assert!(!client.is_over());
        client.finish();
        assert!(client.is_over());
        assert_eq!(sent(&mut client), ["CLOSE"]);
    }

    #[test]
    fn the_extended_form_closes_each_direction_by_itself() {
        let mut client = Simple::new(true, true, None);
        let mut server = Simple::new(false, true, None);
        assert!(client.open(b"a.test:443"));
        assert!(client.may_send(), "early data may follow the request");
        assert_eq!(sent(&mut client), ["OPEN:a.test:443"]);
        assert_eq!(
            text(&mut server, "OPEN:a.test:443"),
            Some(WireEvent::Requested(
                STREAM,
                b"a.test:443".to_vec(),
                Vec::new()
            ))
        );
        server.answer(&Refusal::new(Status::Succeeded, ""));
        assert_eq!(sent(&mut server), ["CONNECTED"]);
        text(&mut client, "CONNECTED");
        client.finish();
        assert_eq!(sent(&mut client), ["FIN"]);
        assert_eq!(text(&mut server, "FIN"), Some(WireEvent::Finished(STREAM)));
        assert!(server.may_send() && !server.is_over());
        server.finish();
        assert!(server.is_over());
        assert_eq!(sent(&mut server), ["FIN"]);
        assert_eq!(text(&mut client, "FIN"), Some(WireEvent::Finished(STREAM)));
        assert!(client.is_over());
    }

    #[test]
    fn a_failure_keeps_its_kind_in_the_extended_form() {
        let failures = Status::ON_THE_WIRE.into_iter();
        for status in failures.filter(|status| *status != Status::Succeeded) {
            let mut client = Simple::new(true, true, None);
            let mut server = Simple::new(false, true, None);
            client.open(b"a.test:443");
            text(&mut server, "OPEN:a.test:443");
            let refusal = Refusal::new(status, "a.test:443: because");
            server.answer(&refusal);
            let answer = sent(&mut server).remove(0);
            assert_eq!(
                text(&mut client, &answer),
                Some(WireEvent::Answered(STREAM, refusal))
            );
        }
    }

    #[test]
    fn the_longest_reason_makes_no_text_that_is_too_long() {
        for request in ["OPEN:a.test:443", "CONNECT:a.test:443|"] {
            let mut client = Simple::new(true, true, None);
            let mut server = Simple::new(false, true, None);
            client.open(b"a.test:443");
            text(&mut server, request);
            server.answer(&Refusal::new(Status::General, "ä".repeat(3000)));
            let answer = sent(&mut server).remove(0);
            let told = client.receive(answer.as_bytes(), true);
            let refusal = Refusal::new(Status::General, "ä".repeat(127));
            assert_eq!(told, Ok(Some(WireEvent::Answered(STREAM, refusal))));
        }
    }

    #[test]
    fn an_extended_connection_that_ends_without_fin_is_a_reset() {
        let mut client = Simple::new(true, true, None);
        client.open(b"a.test:443");
        text(&mut client, "CONNECTED");
        assert_eq!(client.closed(), Some(WireEvent::Reset(STREAM)));
        let mut client = Simple::new(true, false, None);
        client.open(b"a.test:443");
        text(&mut client, "CONNECTED");
        assert_eq!(client.closed(), Some(WireEvent::Finished(STREAM)));
    }

    #[test]
    fn bytes_behind_the_bar_are_for_the_target() {
        let mut server = Simple::new(false, false, None);
        assert_eq!(
            text(&mut server, "CONNECT:[::1]:80|hello|"),
            Some(WireEvent::Requested(
                STREAM,
                b"[::1]:80".to_vec(),
                b"hello|".to_vec()
            ))
        );
        let mut server = Simple::new(false, false, None);
        assert_eq!(text(&mut server, "GET / HTTP/1.1"), None);
        assert_eq!(sent(&mut server), ["ERROR:expected CONNECT:host:port|"]);
        assert!(server.is_over());
    }

    #[test]
    fn a_text_may_be_split_and_has_a_limit() {
        let mut client = Simple::new(true, false, None);
        client.open(b"a.test:443");
        assert_eq!(client.receive(b"ERROR:no", false), Ok(None));
        assert_eq!(
            client.receive(b" such host", true),
            Ok(Some(WireEvent::Answered(
                STREAM,
                Refusal::new(Status::General, "no such host")
            )))
        );
        assert!(client.receive(&[b'x'; TEXT_MAX + 1], true).is_err());
    }

    #[test]
    fn a_workers_keep_alive_is_answered_and_other_texts_mean_nothing() {
        let mut client = Simple::new(true, false, None);
        client.open(b"a.test:443");
        text(&mut client, "CONNECTED");
        sent(&mut client);
        assert_eq!(text(&mut client, "PING"), None);
        assert_eq!(text(&mut client, "{\"a\":1}"), None);
        assert_eq!(sent(&mut client), ["PONG"]);
    }

    #[test]
    fn keep_alive_texts_that_pile_up_crowd_out_nothing() {
        let mut client = Simple::new(true, true, None);
        client.open(b"a.test:443");
        for _ in 0..20 {
            text(&mut client, "PING");
        }
        client.finish();
        assert_eq!(sent(&mut client), ["OPEN:a.test:443", "PONG", "FIN"]);
        text(&mut client, "PING");
        assert_eq!(sent(&mut client), ["PONG"]);
    }

    #[test]
    fn five_bytes_that_spell_the_end_are_sent_in_two_messages() {
        assert_eq!(sendable(b"CLOSE"), 4);
        assert_eq!(sendable(b"CLOSE!"), 6);
        assert_eq!(sendable(b"E"), 1);
    }

    const WINDOW: usize = 1 << 20;
    const KIB: usize = 1024;

    /// A connection whose server announced windows and has the client's request.
    fn with_windows() -> (Simple, Simple) {
        let mut client = Simple::new(true, true, Some(WINDOW));
        let mut server = Simple::new(false, true, Some(WINDOW));
        assert!(client.open(b"a.test:443"));
        for sent in sent(&mut client) {
            text(&mut server, &sent);
        }
        (client, server)
    }

    #[test]
    fn each_side_sends_what_the_other_takes() {
        let (mut client, mut server) = with_windows();
        assert_eq!(client.room(), 256 * KIB);
        assert_eq!(server.room(), 0, "there is no answer yet");
        assert!(!server.has_text());
        server.answer(&Refusal::new(Status::Succeeded, ""));
        assert_eq!(sent(&mut server), ["CONNECTED", "WINDOW:786432"]);
        assert_eq!(server.room(), WINDOW);
        text(&mut client, "CONNECTED");
        assert_eq!(
            text(&mut client, "WINDOW:786432"),
            Some(WireEvent::Writable(STREAM))
        );
        assert_eq!(client.room(), WINDOW);
        server.note_sent(WINDOW);
        assert_eq!(server.room(), 0);
        client.consumed(256 * KIB);
        assert!(client.has_text());
        assert_eq!(sent(&mut client), ["WINDOW:262144"]);
        text(&mut server, "WINDOW:262144");
        assert_eq!(server.room(), 256 * KIB);
    }

    #[test]
    fn a_direction_that_goes_on_alone_keeps_its_window() {
        let (mut client, mut server) = with_windows();
        server.answer(&Refusal::new(Status::Succeeded, ""));
        for text_of_server in sent(&mut server) {
            text(&mut client, &text_of_server);
        }
        client.finish();
        client.consumed(WINDOW / 4);
        assert_eq!(sent(&mut client), ["FIN", "WINDOW:262144"]);
        text(&mut server, "FIN");
        server.note_sent(WINDOW);
        text(&mut server, "WINDOW:262144");
        assert_eq!(server.room(), WINDOW / 4);
        server.consumed(WINDOW);
        assert!(!server.has_text(), "nothing more comes from the client");
        server.finish();
        assert_eq!(sent(&mut server), ["FIN"]);
        text(&mut client, "FIN");
        client.consumed(WINDOW);
        assert!(client.is_over() && !client.has_text());
    }

    #[test]
    fn there_are_no_windows_without_the_announcement_or_without_a_client_that_has_them() {
        for (extended, window) in [(true, None), (false, Some(WINDOW))] {
            let mut client = Simple::new(true, extended, window);
            client.open(b"a.test:443");
            assert_eq!(sent(&mut client).len(), 1);
            text(&mut client, "CONNECTED");
            assert_eq!(text(&mut client, "WINDOW:1"), None);
            client.consumed(WINDOW);
            assert!(!client.has_text());
            assert_eq!(client.room(), usize::MAX);
        }
        for request in ["OPEN:a.test:443", "CONNECT:a.test:443|"] {
            let mut server = Simple::new(false, true, Some(WINDOW));
            text(&mut server, request);
            server.answer(&Refusal::new(Status::Succeeded, ""));
            server.consumed(WINDOW);
            assert_eq!(sent(&mut server), ["CONNECTED"]);
            assert_eq!(server.room(), usize::MAX);
        }
    }

    #[test]
    fn the_first_update_comes_before_the_request_and_none_is_lost_when_many_texts_wait() {
        let mut client = Simple::new(true, true, Some(WINDOW));
        assert!(
            !client.has_text(),
            "a connection that waits for its use says nothing"
        );
        client.open(b"a.test:443");
        for _ in 0..20 {
            text(&mut client, "PING");
        }
        client.consumed(WINDOW / 4);
        let sent = sent(&mut client);
        assert_eq!(sent[..2], ["WINDOW:1048576", "OPEN:a.test:443"]);
        assert_eq!(sent.last().map(String::as_str), Some("WINDOW:262144"));
    }
}
