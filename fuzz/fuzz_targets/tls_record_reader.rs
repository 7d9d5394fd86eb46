//! A peer that seals whatever it likes: no panic, the same however the bytes are cut, and no data but what was sent as data.
#![no_main]

use arbitrary::Arbitrary;
use ech_workers_tls::fuzzing::{Heard, Opener, Sealer};
use libfuzzer_sys::fuzz_target;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

#[derive(Arbitrary, Debug)]
struct Connection {
    client: bool,
    /// How many bytes are there at the end of the handshake, and come at a time from then on.
    unread: u16,
    piece: u16,
    records: Vec<Record>,
}

#[derive(Arbitrary, Debug)]
enum Record {
    Data {
        content: Vec<u8>,
        padding: u16,
    },
    /// Data as long as it may be, with some bytes more or less.
    Long {
        byte: u8,
        more: i8,
    },
    Handshake {
        content: Vec<u8>,
        padding: u8,
    },
    /// A ticket's beginning, and its body by halves.
    Ticket {
        length: u16,
    },
    /// A KeyUpdate in as many records as `cuts` says.
    KeyUpdate {
        request: u8,
        cuts: u8,
    },
    Alert {
        level: u8,
        code: u8,
    },
    Other {
        kind: u8,
        content: Vec<u8>,
    },
    /// Bytes that nobody sealed.
    Raw(Vec<u8>),
}

fuzz_target!(|connection: Connection| {
    let mut sealer = Sealer::new();
    let mut wire = Vec::new();
    let mut data = Vec::new();
    for record in &connection.records {
        seal(record, &mut sealer, &mut wire, &mut data);
    }

    let whole = open(connection.client, &wire, 0, usize::MAX);
    let unread = usize::from(connection.unread).min(wire.len());
    let piece = usize::from(connection.piece).max(1);
    let cut = open(connection.client, &wire, unread, piece);
    assert_eq!(whole, cut);
    let mut heard = Vec::new();
    for each in whole {
        if let Heard::Data(bytes) = each {
            assert!(!bytes.is_empty() && bytes.len() <= 1 << 14);
            heard.extend(bytes);
        }
    }
    assert!(data.starts_with(&heard), "data that was not sent as data");
});

fn seal(record: &Record, sealer: &mut Sealer, wire: &mut Vec<u8>, data: &mut Vec<u8>) {
    let mut put = |kind: u8, content: &[u8], padding: usize| {
        // The longest record that a header may announce, and a little more.
        let mut inner = content[..content.len().min(17_000)].to_vec();
        inner.push(kind);
        inner.resize((inner.len() + padding).min(17_000), 0);
        wire.extend(sealer.seal(&inner));
    };
    match record {
        Record::Data { content, padding } => {
            put(APPLICATION_DATA, content, usize::from(*padding));
            data.extend(content);
        }
        Record::Long { byte, more } => {
            let length = (1i32 << 14) + i32::from(*more);
            let content = vec![*byte; length as usize];
            put(APPLICATION_DATA, &content, 0);
            data.extend(content);
        }
        Record::Handshake { content, padding } => put(HANDSHAKE, content, usize::from(*padding)),
        Record::Ticket { length } => {
            let [high, low] = length.to_be_bytes();
            let length = usize::from(*length).min(16_000);
            put(HANDSHAKE, &[4, 0, high, low], 0);
            put(HANDSHAKE, &vec![4; length / 2], 0);
            put(HANDSHAKE, &vec![24; length - length / 2], 0);
        }
        Record::KeyUpdate { request, cuts } => {
            let message = [24, 0, 0, 1, request % 3];
            let mut begun = 0;
            for end in 1..=5 {
                if end == 5 || cuts >> end & 1 == 1 {
                    put(HANDSHAKE, &message[begun..end], 0);
                    begun = end;
                }
            }
            sealer.update();
        }
        Record::Alert { level, code } => put(ALERT, &[*level, *code], 0),
        Record::Other { kind, content } => {
            put(*kind, content, 0);
            if *kind == APPLICATION_DATA {
                data.extend(content);
            }
        }
        Record::Raw(bytes) => wire.extend(bytes),
    }
}

/// What a reader makes of the bytes when some are there at its beginning and the others come in pieces.
fn open(client: bool, wire: &[u8], unread: usize, piece: usize) -> Vec<Heard> {
    let (begin, mut rest) = wire.split_at(unread);
    let mut opener = Opener::new(client, begin);
    let mut heard = Vec::new();
    loop {
        match opener.open() {
            Some(end @ (Heard::End | Heard::Broken(_) | Heard::Alert(_) | Heard::Failed)) => {
                let after = opener.open();
                let ended = end == Heard::End;
                assert_eq!(after, Some(if ended { Heard::End } else { Heard::Failed }));
                heard.push(end);
                return heard;
            }
            Some(more) => heard.push(more),
            None if rest.is_empty() => return heard,
            None => {
                let mut next = &rest[..piece.min(rest.len())];
                let before = next.len();
                opener.fill(&mut next);
                assert!(next.len() < before, "no room for the rest of a record");
                rest = &rest[before - next.len()..];
            }
        }
    }
}
