use ech_workers_proxy::{
    Credentials, Error, Host, MAX_HEAD, Negotiation, Progress, RequestKind, Target,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{End, Outcome, converse};

/// Bytes near the protocols: whole conversations, changed in places, with anything behind.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let host = prop_oneof![
        "[a-z]{1,8}(\\.[a-z]{1,8}){0,3}",
        "[0-9.]{7,15}",
        "\\[[0-9a-f:]{2,20}\\]",
        "[ -~]{0,20}",
    ];
    let method = prop_oneof![
        Just("GET"),
        Just("POST"),
        Just("HEAD"),
        Just("OPTIONS"),
        Just("CONNECT"),
        Just("get")
    ];
    let field = prop_oneof![
        Just("Connection: close, X-A".to_owned()),
        Just("Connection: Upgrade\r\nUpgrade: websocket".to_owned()),
        Just("Transfer-Encoding: chunked".to_owned()),
        Just("Proxy-Authorization: Basic dTpw".to_owned()),
        Just("Host: a.test".to_owned()),
        (0..40_u32).prop_map(|length| format!("Content-Length: {length}")),
        "[A-Za-z-]{1,10}: [ -~]{0,30}",
        "[ -~]{0,20}",
    ];
    let target =
        (0..4_u8, host, 0..70_000_u32, "(/[ -~]{0,20})?").prop_map(|(form, host, port, path)| {
            match form {
                0 => format!("{host}:{port}"),
                1 => format!("http://{host}:{port}{path}"),
                2 => format!("ws://user:p%40ss@{host}{path}"),
                _ => format!("http://{host}{path}"),
            }
        });
    let http = (method, target, vec(field, 0..6)).prop_map(|(method, target, fields)| {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        format!("{method} {target} HTTP/1.1\r\n{fields}\r\n").into_bytes()
    });
    let socks = (
        vec(0..4_u8, 0..4),
        any::<bool>(),
        0..5_u8,
        vec(any::<u8>(), 0..20),
    )
        .prop_map(|(methods, authenticate, address_type, rest)| {
            let mut bytes = vec![5, u8::try_from(methods.len()).unwrap()];
            bytes.extend(methods);
            if authenticate {
                bytes.extend(b"\x01\x01u\x01p");
            }
            bytes.extend([5, 1, 0, address_type]);
            bytes.extend(rest);
            bytes
        });
    let behind = prop_oneof![
        vec(any::<u8>(), 0..60),
        Just(b"5\r\nhello\r\n0\r\n\r\nGET http://b.test/ HTTP/1.1\r\n\r\n".to_vec()),
    ];
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (
        prop_oneof![http, socks, vec(any::<u8>(), 0..200)],
        behind,
        changes,
    )
        .prop_map(|(mut bytes, behind, changes)| {
            if !bytes.is_empty() {
                for (index, byte) in changes {
                    let index = index.index(bytes.len());
                    bytes[index] = byte;
                }
            }
            bytes.extend(behind);
            bytes
        })
}

fn negotiation(with_credentials: bool) -> Negotiation {
    Negotiation::new(with_credentials.then(|| Credentials::new("u", "p").unwrap()))
}

/// The outcome, but for one thing that does depend on how the bytes arrive: chunked content that turns
/// out broken is answered only if it came along with the head, before the target was connected.
fn comparable(outcome: Outcome) -> Outcome {
    match outcome.end {
        End::Reject(Error::MalformedRequest(reason)) if reason.contains("chunk") => Outcome {
            sent: Vec::new(),
            ..outcome
        },
        _ => outcome,
    }
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_how_the_bytes_arrive(
        bytes in conversation(),
        cuts in vec(any::<prop::sample::Index>(), 0..4),
        with_credentials: bool,
    ) {
        let converse = |pieces: Vec<&[u8]>| comparable(converse(negotiation(with_credentials), pieces));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut start = 0;
        for cut in cuts {
            pieces.push(&bytes[start..cut]);
            start = cut;
        }
        pieces.push(&bytes[start..]);
        let whole = converse(vec![&bytes]);
        prop_assert_eq!(&whole, &converse(pieces));
        prop_assert_eq!(&whole, &converse(bytes.chunks(1).collect()));
    }

    #[test]
    fn a_target_that_was_accepted_is_one_line_that_reads_back_the_same(bytes in conversation()) {
        if let End::Request(request) = converse(negotiation(false), [&bytes[..]]).end {
            let authority = request.target.authority();
            prop_assert!(authority.len() < 300);
            prop_assert!(authority.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'|'), "{authority:?}");
            prop_assert_eq!(authority.parse::<Target>(), Ok(request.target));
        }
    }

    #[test]
    fn a_forwarded_head_is_one_request_for_its_target(bytes in conversation()) {
        let End::Request(request) = converse(negotiation(false), [&bytes[..]]).end else { return Ok(()) };
        if request.kind != RequestKind::HttpForward {
            return Ok(());
        }
        // The request target is bytes, which httparse's own request does not take.
        let line = request.early.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let (line, rest) = request.early.split_at(line + 2);
        let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        prop_assert_eq!(words.len(), 3);
        prop_assert!(words[1].starts_with(b"/") || words[1] == b"*");
        let mut table = [httparse::EMPTY_HEADER; 260];
        let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(rest, &mut table) else {
            return Err(TestCaseError::fail("the forwarded fields do not parse"));
        };
        let values = |name: &str| -> Vec<&[u8]> {
            fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
        };
        prop_assert_eq!(values("Host").len(), 1);
        let connection = values("Connection");
        prop_assert!(connection == [b"close"] || (request.exchange.is_some_and(|exchange| exchange.is_holding()) && connection == [b"Upgrade"]));
        prop_assert!(values("Proxy-Authorization").is_empty());
        if let Host::Domain(name) = &request.target.host {
            prop_assert!(values("Host")[0].starts_with(name.as_bytes()));
        }
    }

    #[test]
    fn any_domain_name_or_address_reads_back_the_same(
        host in prop_oneof![
            any::<std::net::IpAddr>().prop_map(Host::Ip),
            "[a-z]([a-z0-9_-]{0,61}[a-z])?(\\.[a-z]([a-z0-9-]{0,20})){0,5}".prop_map(Host::Domain),
        ],
        port in 1..=u16::MAX,
    ) {
        let target = Target { host, port };
        prop_assert_eq!(target.authority().parse::<Target>(), Ok(target));
    }

    #[test]
    fn a_client_that_never_ends_its_request_is_turned_away_in_bounded_memory(
        first in prop_oneof![Just(b'G'), Just(5), any::<u8>()],
        piece in vec(any::<u8>(), 1..300),
        printable: bool,
    ) {
        let mut negotiation = negotiation(true);
        let piece: Vec<u8> = piece.iter().map(|byte| if printable { b' ' + byte % 95 } else { *byte }).collect();
        let mut progress = negotiation.advance(&[first]);
        let mut fed = 1;
        while matches!(progress, Progress::NeedMore | Progress::Send(_)) {
            prop_assert!(fed <= MAX_HEAD + 1, "still listening after {} bytes", fed);
            fed += piece.len();
            progress = negotiation.advance(&piece);
            if fed > MAX_HEAD {
                prop_assert!(!matches!(progress, Progress::NeedMore));
            }
        }
    }
}
