//! Whatever a target answers to a forwarded request, however it is cut: no panic, the same result, and a program that is told
//! that its connection ends.
#![no_main]

use ech_workers_proxy::{Exchange, MAX_ANSWER_HEAD, Negotiation, Progress};
use libfuzzer_sys::fuzz_target;

const REQUESTS: [&[u8]; 4] = [
    b"GET http://a.test/ HTTP/1.1\r\n\r\n",
    b"HEAD http://a.test/ HTTP/1.1\r\n\r\n",
    b"POST http://a.test/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET http://a.test/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nheld",
];

fuzz_target!(|input: &[u8]| {
    // The first byte: the request, and the length of the pieces.
    let Some((&options, bytes)) = input.split_first() else {
        return;
    };
    let request = REQUESTS[usize::from(options & 3)];
    let piece = 1 + usize::from(options >> 2);

    let whole = converse(request, &[bytes]);
    let pieces: Vec<_> = bytes.chunks(piece).collect();
    assert_eq!(whole, converse(request, &pieces));

    let (told, exchange) = whole;
    assert!(told.len() <= bytes.len() + MAX_ANSWER_HEAD);
    assert!(!(exchange.is_over() && (exchange.is_holding() || exchange.is_pipe())));
    check_heads(&told);
});

/// All that the program gets, and the exchange after it.
fn converse(request: &[u8], pieces: &[&[u8]]) -> (Vec<u8>, Exchange) {
    let Progress::Request(request) = Negotiation::new(None).advance(request) else {
        unreachable!("a request");
    };
    let mut exchange = *request.exchange.expect("a forwarded request");
    let mut told = Vec::new();
    for piece in pieces {
        let held = exchange.is_holding();
        let passage = exchange.accept_answer(piece);
        told.extend(passage.head);
        told.extend_from_slice(&piece[passage.body]);
        if exchange.is_pipe() && held {
            assert_eq!(exchange.take_held(), b"held");
        }
        assert!(exchange.take_held().is_empty());
    }
    told.extend(exchange.end_of_answer());
    (told, exchange)
}

/// Up to the final one each head can be read, and the final one ends the connection.
fn check_heads(mut told: &[u8]) {
    while told.starts_with(b"HTTP/") {
        let mut fields = [httparse::EMPTY_HEADER; 1024];
        let mut head = httparse::Response::new(&mut fields);
        // The target's field values may hold what httparse takes for an error: programs judge that themselves.
        let Ok(httparse::Status::Complete(length)) = head.parse(told) else {
            return;
        };
        let connection: Vec<_> = head
            .headers
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case("Connection"))
            .map(|field| field.value)
            .collect();
        match head.code {
            Some(101) => return,
            Some(100..=199) => assert!(connection.is_empty()),
            _ => {
                assert_eq!(connection, [b"close"]);
                return;
            }
        }
        told = &told[length..];
    }
}
