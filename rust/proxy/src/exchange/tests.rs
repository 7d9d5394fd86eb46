use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::MAX_ANSWER_HEAD;

const NEXT: &[u8] = b"GET http://b.test/ HTTP/1.1\r\nCookie: for-b\r\n\r\n";

fn get() -> Exchange {
    Exchange::new(Body::sized(0), false)
}

/// What the program gets of `pieces`.
fn told(exchange: &mut Exchange, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        let Passage { head, body } = exchange.accept_answer(piece);
        out.extend(head);
        out.extend_from_slice(&piece[body]);
    }
    out
}

#[track_caller]
fn answer(mut exchange: Exchange, bytes: &str) -> (String, Exchange) {
    let out = told(&mut exchange, &[bytes.as_bytes()]);
    (String::from_utf8(out).unwrap(), exchange)
}

#[track_caller]
fn assert_502(exchange: Exchange, bytes: &str) {
    let (out, exchange) = answer(exchange, bytes);
    assert!(
        out.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
        "{bytes:?}: {out}"
    );
    assert!(exchange.is_over());
}

#[test]
fn the_answer_says_that_the_connection_ends_whatever_the_target_says() {
    let (out, exchange) = answer(
        get(),
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nProxy-Connection: keep-alive\r\n\
         Content-Length: 5\r\nX-Other : 2\r\n\r\nhelloHTTP/1.1 200 unasked",
    );
    assert_eq!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Other: 2\r\nConnection: close\r\n\r\nhello"
    );
    assert!(exchange.is_over());
}

#[test]
fn the_next_request_does_not_go_to_the_target() {
    let mut exchange = get();
    assert_eq!(exchange.accept_request(NEXT), Ok(0));
    assert!(!exchange.is_holding(), "there is nothing to wait for");
    let _ = told(&mut exchange, &[b"HTTP/1.1 200 OK\r\n\r\n"]);
    assert_eq!(exchange.accept_request(NEXT), Ok(0));
}

#[test]
fn the_answer_ends_where_it_says() {
    for (head, content) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", ""),
        ("HTTP/1.1 204 No Content\r\n", ""),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n", ""),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\nContent-Length: 3\r\n",
            "abc",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
            "3\r\nabc\r\n0\r\nDigest: x\r\n\r\n",
        ),
        ("HTTP/1.0 200 OK\nContent-Length: 3\n", "abc"),
    ] {
        for behind in ["", "HTTP/1.1 200 unasked\r\n\r\n"] {
            let (out, exchange) = answer(get(), &format!("{head}\r\n{content}{behind}"));
            assert!(
                out.ends_with(&format!("\r\n\r\n{content}")),
                "{head}: {out}"
            );
            assert!(exchange.is_over(), "{head}");
        }
    }
    let (_, exchange) = answer(
        Exchange::new(Body::sized(0), true),
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
    );
    assert!(exchange.is_over(), "the answer to HEAD has no content");
}

#[test]
fn an_answer_that_does_not_say_where_it_ends_ends_with_the_connection() {
    for head in [
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n",
    ] {
        let (out, mut exchange) = answer(get(), &format!("{head}\r\n0\r\n\r\nabc"));
        assert!(out.ends_with("\r\n\r\n0\r\n\r\nabc"), "{head}: {out}");
        assert!(!exchange.is_over());
        assert!(exchange.end_of_answer().is_empty());
        assert!(exchange.is_over());
    }
}

#[test]
fn chunks_that_cannot_be_read_are_left_to_the_program() {
    let content = "3\r\nabcX0\r\n\r\nmore";
    let (out, exchange) = answer(
        get(),
        &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{content}"),
    );
    assert!(out.ends_with(content), "{out}");
    assert!(!exchange.is_over());
}

#[test]
fn interim_answers_pass() {
    let (out, exchange) = answer(
        get(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 \r\n\r\n",
    );
    assert_eq!(
        out,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 \r\nConnection: close\r\n\r\n"
    );
    assert!(exchange.is_over());
}

#[test]
fn a_coding_takes_the_place_of_a_length() {
    let (out, _) = answer(
        get(),
        "HTTP/1.1 200 OK\r\nConnection: Transfer-Encoding\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(
        out,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
}

#[test]
fn fields_that_browsers_can_live_with_are_no_fault() {
    let (out, _) = answer(
        get(),
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\u{1}c\r\nno colon\r\n: no name\r\nA: b\r\n c\r\nServer:\r\n\r\n",
    );
    assert_eq!(
        out,
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\u{1}c\r\nA: b   c\r\nServer: \r\nConnection: close\r\n\r\n"
    );
}

#[test]
fn a_switch_of_protocols_makes_a_pipe() {
    let mut exchange = Exchange::upgrade();
    exchange.hold(b"early frame");
    assert!(exchange.is_holding());
    assert_eq!(exchange.accept_request(b"frame"), Ok(0));
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let (out, mut exchange) = answer(exchange, &format!("{switch}\u{1}frame"));
    assert_eq!(out, format!("{switch}\u{1}frame"), "a 101 is not changed");
    assert!(exchange.is_pipe() && !exchange.is_holding() && !exchange.is_over());
    assert_eq!(exchange.take_held(), b"early frame");
    assert_eq!(exchange.accept_request(b"frame"), Ok(5));
    assert!(exchange.end_of_answer().is_empty());
    assert_eq!(
        exchange.accept_request(b"frame"),
        Ok(5),
        "a half-closed pipe"
    );
}

#[test]
fn a_refused_switch_is_the_end_of_the_exchange() {
    let mut exchange = Exchange::upgrade();
    exchange.hold(NEXT);
    let (out, mut exchange) = answer(
        exchange,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nno",
    );
    assert!(
        out.ends_with(
            "\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        ),
        "{out}"
    );
    assert!(exchange.is_over() && !exchange.is_pipe() && !exchange.is_holding());
    assert_eq!(exchange.take_held(), b"");
    assert_eq!(exchange.accept_request(NEXT), Ok(0));
}

#[test]
fn an_answer_that_cannot_be_passed_on_is_a_502() {
    assert_502(
        get(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    );
    for head in [
        "HTTP/1.1 abc\r\n",
        "HTTP/1.1 20\r\n",
        "HTTP/1.1 2000 OK\r\n",
        "HTTP/1.1 000 OK\r\n",
        "HTTP/2 200\r\n",
        "HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n",
    ] {
        assert_502(get(), &format!("{head}\r\n"));
        assert_502(Exchange::upgrade(), &format!("{head}\r\n"));
    }
    let (out, _) = answer(Exchange::new(Body::sized(0), true), "HTTP/1.1 abc\r\n\r\n");
    assert!(out.ends_with("\r\n\r\n"), "no content for HEAD: {out}");
}

#[test]
fn a_head_that_is_too_long_is_a_502() {
    let of_length = |length: usize| {
        let (start, end) = ("HTTP/1.1 200 OK\r\nA: ", "\r\n\r\n");
        format!(
            "{start}{}{end}",
            "a".repeat(length - start.len() - end.len())
        )
    };
    let (out, _) = answer(get(), &of_length(MAX_ANSWER_HEAD));
    assert!(out.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_502(get(), &of_length(MAX_ANSWER_HEAD + 1));
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_ANSWER_HEAD);
    let (out, exchange) = answer(get(), &endless);
    assert!(exchange.is_over() && out.len() < MAX_ANSWER_HEAD + 1024);
}

#[test]
fn what_is_no_http_passes_as_it_is() {
    for bytes in ["ICY 200 OK\r\nicy-name: a\r\n\r\nmusic", "HTML", "\n"] {
        let (out, mut exchange) = answer(get(), bytes);
        assert_eq!(out, bytes);
        assert_eq!(told(&mut exchange, &[b"more"]), b"more");
        assert!(!exchange.is_over() && exchange.end_of_answer().is_empty());
    }
}

#[test]
fn a_target_that_closes_without_an_answer_is_a_502() {
    for bytes in [&b""[..], b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let mut exchange = get();
        let _ = told(&mut exchange, &[bytes]);
        assert!(exchange.end_of_answer().starts_with(b"HTTP/1.1 502 "));
        assert!(exchange.is_over() && exchange.end_of_answer().is_empty());
    }
}

/// Bytes that come near answers.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.0 404 Not Found\n",
            "HTTP/1.1 101 Switching Protocols\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 304 \r\n",
            "Connection: keep-alive, A\r\n",
            "Keep-Alive: 1\r\n",
            "A: b\r\n",
            " folded\r\n",
            "Content-Length: 3\r\n",
            "Transfer-Encoding: chunked\r\n",
            "3\r\nabc\r\n",
            "0\r\n\r\n",
            "\r\n",
            "\n",
            "\r",
            " ",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..20),
    ];
    let pieces = vec(piece, 0..14).prop_map(|pieces| pieces.concat());
    (any::<bool>(), pieces).prop_map(|(whole, bytes)| {
        let start: &[u8] = if whole { b"HTTP/1.1 200 OK\r\n" } else { b"" };
        [start, &bytes].concat()
    })
}

fn exchanges() -> impl Strategy<Value = Exchange> {
    prop_oneof![
        Just(get()),
        Just(Exchange::new(Body::chunked(), true)),
        Just(Exchange::upgrade()),
    ]
}

proptest! {
    #[test]
    fn the_outcome_does_not_depend_on_how_the_answer_is_split(
        exchange in exchanges(),
        bytes in answers(),
        cuts in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut start = 0;
        for cut in cuts {
            pieces.push(&bytes[start..cut]);
            start = cut;
        }
        pieces.push(&bytes[start..]);
        let outcome = |pieces: &[&[u8]]| {
            let mut exchange = exchange.clone();
            let mut out = told(&mut exchange, pieces);
            let state = (exchange.is_over(), exchange.is_pipe(), exchange.is_holding());
            out.extend(exchange.end_of_answer());
            (out, state)
        };
        let whole = outcome(&[&bytes]);
        prop_assert_eq!(&whole, &outcome(&pieces));
        prop_assert_eq!(&whole, &outcome(&bytes.chunks(1).collect::<Vec<_>>()));
    }

    #[test]
    fn an_answer_in_http_says_once_that_the_connection_ends_or_switches(
        exchange in exchanges(),
        bytes in answers(),
    ) {
        let mut after = exchange;
        let out = told(&mut after, &[&bytes]);
        let mut rest = &out[..];
        while rest.starts_with(b"HTTP/") {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut head = httparse::Response::new(&mut fields);
            let Ok(httparse::Status::Complete(length)) = head.parse(rest) else { break };
            let connection: Vec<&[u8]> = head
                .headers
                .iter()
                .filter(|field| field.name.eq_ignore_ascii_case("Connection"))
                .map(|field| field.value)
                .collect();
            match head.code {
                Some(101) => {
                    prop_assert!(after.is_pipe());
                    break;
                }
                Some(100..=199) => prop_assert!(connection.is_empty()),
                _ => {
                    prop_assert_eq!(connection, vec![b"close"]);
                    break;
                }
            }
            rest = &rest[length..];
        }
        prop_assert!(!(after.is_over() && after.is_holding()));
    }
}
