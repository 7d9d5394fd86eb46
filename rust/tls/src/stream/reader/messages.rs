//! Handshake messages after the handshake (RFC 8446 section 4.6), however they are cut into records (section 5.1).

use std::time::{Duration, Instant};

use crate::record::RecordError;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Lengths that a NewSessionTicket can have (section 4.6.1): its fixed fields with an empty nonce, a ticket of one byte and
/// no extensions; and all three as long as they can be.
const TICKET_LENGTHS: std::ops::RangeInclusive<usize> =
    14..=13 + u8::MAX as usize + 2 * u16::MAX as usize;

/// Where the reading of messages stands. Nothing is kept of them but a header that is not whole yet.
pub(super) struct Messages {
    client: bool,
    state: State,
    pub(super) patience: Patience,
}

#[derive(Clone, Copy)]
enum State {
    /// The bytes of the next message's header that are there, fewer than four.
    Header { bytes: [u8; 3], length: u8 },
    /// The rest of a ticket's length.
    Ticket(usize),
    /// The one byte of a key update.
    KeyUpdate,
}

const BETWEEN: State = State::Header {
    bytes: [0; 3],
    length: 0,
};

impl Messages {
    pub(super) const fn new(client: bool) -> Self {
        Self {
            client,
            state: BETWEEN,
            patience: Patience::new(),
        }
    }

    /// Whether a message has begun and not ended.
    pub(super) const fn is_split(&self) -> bool {
        !matches!(self.state, State::Header { length: 0, .. })
    }

    /// Reads the content of one record. `Some` if it ended with a key update, and whether that asks for one of ours.
    pub(super) fn read(&mut self, mut content: &[u8]) -> Result<Option<bool>, RecordError> {
        while let Some((&byte, rest)) = content.split_first() {
            match &mut self.state {
                State::Header { bytes, length } => {
                    content = rest;
                    if let Some(place) = bytes.get_mut(usize::from(*length)) {
                        *place = byte;
                        *length += 1;
                    } else {
                        self.state = begin(self.client, *bytes, byte)?;
                        self.patience.spend(Instant::now())?;
                    }
                }
                State::Ticket(missing) => {
                    let length = content.len().min(*missing);
                    content = content.get(length..).unwrap_or_default();
                    *missing -= length;
                    if *missing == 0 {
                        self.state = BETWEEN;
                    }
                }
                State::KeyUpdate => {
                    self.state = BETWEEN;
                    return match (byte, rest) {
                        (0 | 1, []) => Ok(Some(byte == 1)),
                        // What follows it has another key, so it must end its record (section 5.1).
                        (0 | 1, _) => Err(RecordError::UnexpectedMessage),
                        _ => Err(RecordError::IllegalParameter),
                    };
                }
            }
        }
        Ok(None)
    }
}

/// The message with this header, whose last byte is `low`.
fn begin(client: bool, [kind, high, middle]: [u8; 3], low: u8) -> Result<State, RecordError> {
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    match kind {
        NEW_SESSION_TICKET if client && TICKET_LENGTHS.contains(&length) => {
            Ok(State::Ticket(length))
        }
        KEY_UPDATE if length == 1 => Ok(State::KeyUpdate),
        NEW_SESSION_TICKET if client => Err(RecordError::DecodeError),
        KEY_UPDATE => Err(RecordError::DecodeError),
        _ => Err(RecordError::UnexpectedMessage),
    }
}

/// How many handshake messages and warnings a peer may still send. Parts of messages do not count: those are bounded by the
/// message's length, and cost no more than data.
///
/// Each costs more than its bytes: a key update makes new keys, and maybe another key update in answer. An honest peer sends
/// a few, now and then; one that sends them without end, and no data, wants something else.
pub(super) struct Patience {
    spent: u32,
    /// When something of it came back last.
    since: Option<Instant>,
}

/// In a row; BoringSSL and OpenSSL allow 32 key updates without data between them.
const MESSAGES: u32 = 64;

/// One comes back in this time, so that a connection that is idle for days may change its keys now and then.
const RECOVERY: Duration = Duration::from_secs(1);

impl Patience {
    pub(super) const fn new() -> Self {
        Self {
            spent: 0,
            since: None,
        }
    }

    /// Data came.
    pub(super) fn renew(&mut self) {
        self.spent = 0;
    }

    pub(super) fn spend(&mut self, now: Instant) -> Result<(), RecordError> {
        let since = *self.since.get_or_insert(now);
        let recovered = now.saturating_duration_since(since).as_secs() / RECOVERY.as_secs();
        let recovered = u32::try_from(recovered).unwrap_or(u32::MAX);
        if recovered > 0 {
            self.spent = self.spent.saturating_sub(recovered);
            self.since = Some(now);
        }
        if self.spent >= MESSAGES {
            return Err(RecordError::UnexpectedMessage);
        }
        self.spent += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads what is sent in records of these contents, up to the first key update or error.
    fn read(client: bool, records: &[&[u8]]) -> Result<Option<bool>, RecordError> {
        let mut messages = Messages::new(client);
        for content in records {
            if let Some(requested) = messages.read(content)? {
                return Ok(Some(requested));
            }
        }
        Ok(None)
    }

    fn ticket(length: usize) -> Vec<u8> {
        let mut message = vec![
            NEW_SESSION_TICKET,
            (length >> 16) as u8,
            (length >> 8) as u8,
            length as u8,
        ];
        message.resize(4 + length, 7);
        message
    }

    #[test]
    fn a_key_update_is_read_however_it_is_cut() {
        for cut in 1..5 {
            for (value, requested) in [(0, false), (1, true)] {
                let message = [KEY_UPDATE, 0, 0, 1, value];
                let (first, second) = message.split_at(cut);
                assert_eq!(read(false, &[first, second]), Ok(Some(requested)), "{cut}");
            }
        }
        let bytes: &[&[u8]] = &[&[24], &[0], &[0], &[1], &[1]];
        assert_eq!(read(true, bytes), Ok(Some(true)));
    }

    #[test]
    fn each_fault_has_its_alert() {
        for (content, error) in [
            (&[24, 0, 0, 1, 2][..], RecordError::IllegalParameter),
            (&[24, 0, 0, 1, 255], RecordError::IllegalParameter),
            (&[24, 0, 0, 0], RecordError::DecodeError),
            (&[24, 0, 0, 2, 0, 0], RecordError::DecodeError),
            (&[24, 1, 0, 1], RecordError::DecodeError),
            (&[24, 0, 0, 1, 0, 0], RecordError::UnexpectedMessage),
            (
                &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0],
                RecordError::UnexpectedMessage,
            ),
            (&[1, 0, 0, 0], RecordError::UnexpectedMessage),
            (&[13, 0, 0, 0], RecordError::UnexpectedMessage),
            (&[20, 0, 0, 32], RecordError::UnexpectedMessage),
        ] {
            for client in [false, true] {
                assert_eq!(read(client, &[content]), Err(error), "{content:?}");
                let (first, second) = content.split_at(1);
                assert_eq!(read(client, &[first, second]), Err(error), "{content:?}");
            }
        }
    }

    #[test]
    fn tickets_are_for_clients() {
        for length in [14, 300, 131_338] {
            assert_eq!(read(true, &[&ticket(length)]), Ok(None), "{length}");
            assert_eq!(
                read(false, &[&ticket(length)]),
                Err(RecordError::UnexpectedMessage)
            );
        }
        for length in [0, 13, 131_339] {
            assert_eq!(
                read(true, &[&ticket(length)]),
                Err(RecordError::DecodeError)
            );
        }
    }

    #[test]
    fn patience_is_for_a_row_and_for_a_time() {
        let start = Instant::now();
        let mut patience = Patience::new();
        for _ in 0..MESSAGES {
            assert_eq!(patience.spend(start), Ok(()));
        }
        assert!(patience.spend(start).is_err(), "too many in a row");
        patience.renew();
        assert_eq!(patience.spend(start), Ok(()), "data came");

        // One a second for a day.
        for second in 0..86_400 {
            let now = start + Duration::from_secs(second);
            assert_eq!(patience.spend(now), Ok(()));
        }
        // Two a second do not go on for long.
        let mut now = start + Duration::from_secs(86_400);
        let many = (0..1000).take_while(|_| {
            now += Duration::from_millis(500);
            patience.spend(now).is_ok()
        });
        assert!(many.count() < 200);
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_they_are_cut(
            lengths in proptest::collection::vec(14usize..400, 0..4),
            cuts in proptest::collection::vec(1usize..90, 1..40),
            requested: bool,
        ) {
            let mut sent: Vec<u8> = lengths.iter().flat_map(|length| ticket(*length)).collect();
            sent.extend([KEY_UPDATE, 0, 0, 1, u8::from(requested)]);
            let mut messages = Messages::new(true);
            let mut rest = &sent[..];
            for cut in cuts.iter().cycle() {
                let (content, behind) = rest.split_at((*cut).min(rest.len()));
                rest = behind;
                let update = messages.read(content).unwrap();
                prop_assert_eq!(update, rest.is_empty().then_some(requested));
                if update.is_some() {
                    break;
                }
            }
            prop_assert!(!messages.is_split());
        }

        #[test]
        fn noise_never_crashes(records in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
            let _ = read(true, &records);
            let _ = read(false, &records);
        }
    }
}
