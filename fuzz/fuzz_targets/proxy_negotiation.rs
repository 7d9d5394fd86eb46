//! Whatever a local program sends, however it is cut: no panic, the same result, and nothing dangerous for the target.
#![no_main]

use ech_workers_proxy::{
    Credentials, Error, MAX_HEAD, Negotiation, Progress, Request, RequestKind, Target,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The first byte: whether credentials are set, and the length of the pieces.
    let Some((&options, bytes)) = input.split_first() else {
        return;
    };
    let credentials = (options & 1 == 1).then(|| Credentials::new("u", "p").expect("a valid pair"));
    let piece = 1 + usize::from(options >> 1);

    let whole = converse(credentials.clone(), &[bytes]);
    let pieces: Vec<_> = bytes.chunks(piece).collect();
    assert_eq!(whole, converse(credentials, &pieces));

    match whole {
        Outcome::Waiting => assert!(bytes.len() <= MAX_HEAD),
        Outcome::Request(request) => check_request(&request),
        Outcome::Rejected(_) => {}
    }
});

#[derive(Debug, PartialEq)]
enum Outcome {
    Waiting,
    Request(Request),
    Rejected(Error),
}

fn converse(credentials: Option<Credentials>, pieces: &[&[u8]]) -> Outcome {
    let mut negotiation = Negotiation::new(credentials);
    let mut outcome = Outcome::Waiting;
    for piece in pieces {
        if let Outcome::Request(request) = &mut outcome {
            let Some(exchange) = &mut request.exchange else {
                request.early.extend_from_slice(piece);
                continue;
            };
            match exchange.accept_request(piece) {
                Ok(length) => {
                    request.early.extend_from_slice(&piece[..length]);
                    exchange.hold(&piece[length..]);
                }
                Err(error) => return Outcome::Rejected(error),
            }
            continue;
        }
        let mut input = *piece;
        loop {
            match negotiation.advance(input) {
                Progress::NeedMore => break,
                Progress::Send(reply) => assert_eq!(reply.len(), 2),
                Progress::Request(request) => {
                    outcome = Outcome::Request(request);
                    break;
                }
                Progress::Reject { reply, error } => {
                    assert!(reply.len() < 1024);
                    return Outcome::Rejected(error);
                }
            }
            input = &[];
        }
    }
    outcome
}

fn check_request(request: &Request) {
    let authority = request.target.authority();
    assert!(
        authority
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'|')
    );
    assert_eq!(authority.parse::<Target>().as_ref(), Ok(&request.target));

    if request.kind == RequestKind::HttpForward {
        let mut fields = [httparse::EMPTY_HEADER; 260];
        let mut head = httparse::Request::new(&mut fields);
        // A request's target is bytes, which httparse wants to be UTF-8.
        let ascii = |byte: &u8| if byte.is_ascii() { *byte } else { b'x' };
        let early: Vec<u8> = request.early.iter().map(ascii).collect();
        let length = head.parse(&early).expect("a head that parses").unwrap();
        let count = |name: &str| {
            head.headers
                .iter()
                .filter(|field| field.name.eq_ignore_ascii_case(name))
                .count()
        };
        assert_eq!((count("Host"), count("Connection")), (1, 1));
        assert_eq!(count("Proxy-Authorization"), 0);
        assert!(count("Content-Length") + count("Transfer-Encoding") <= 1);
        if count("Content-Length") + count("Transfer-Encoding") == 0 {
            assert_eq!(
                length,
                request.early.len(),
                "bytes behind a request without content"
            );
        }
    }
}
