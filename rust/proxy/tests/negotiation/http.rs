use base64::Engine as _;
use ech_workers_proxy::{
    Credentials, Error, Failure, Host, MAX_HEAD, Negotiation, Request, RequestKind, TargetError,
};

use crate::{End, Outcome, converse, rejection, request};

/// What the target gets for a request with these head lines.
#[track_caller]
fn forwarded(lines: &[&str]) -> (Request, String) {
    let request = request(head(lines).as_bytes());
    assert_eq!(request.kind, RequestKind::HttpForward);
    let early = String::from_utf8(request.early.clone()).unwrap();
    (request, early)
}

fn head(lines: &[&str]) -> String {
    format!("{}\r\n\r\n", lines.join("\r\n"))
}

/// The status code and the reason for which a request with these head lines is refused.
#[track_caller]
fn refused(lines: &[&str]) -> (u16, Error) {
    let (reply, error) = rejection(head(lines).as_bytes());
    (reply["HTTP/1.1 ".len()..][..3].parse().unwrap(), error)
}

mod connect {
    use super::*;

    #[test]
    fn goes_to_the_host_and_port_it_names() {
        let request =
            request(b"CONNECT Example.org:8443 HTTP/1.1\r\nHost: other.test\r\n\r\n\x16\x03\x01");
        assert_eq!(request.kind, RequestKind::HttpConnect);
        assert_eq!(request.target.authority(), "Example.org:8443");
        assert_eq!(
            request.early, b"\x16\x03\x01",
            "a TLS hello sent along is not lost"
        );
        assert_eq!(request.exchange, None);
        assert_eq!(
            request.success(),
            b"HTTP/1.1 200 Connection established\r\n\r\n"
        );
    }

    #[test]
    fn takes_addresses() {
        let host = |head: &[u8]| request(head).target.host;
        let ipv6 = Host::Ip("2001:db8::1".parse().unwrap());
        assert_eq!(host(b"CONNECT [2001:db8::1]:443 HTTP/1.0\r\n\r\n"), ipv6);
        assert_eq!(
            host(b"CONNECT 192.0.2.7:443 HTTP/1.1\r\n\r\n"),
            Host::Ip("192.0.2.7".parse().unwrap())
        );
    }

    #[test]
    fn without_a_port_is_refused() {
        for target in [
            "a.test",
            "a.test:",
            "a.test:0",
            "a.test:65536",
            "http://a.test/",
            "/",
            "[::1]",
            "u@a.test:1",
            "a|b:1",
        ] {
            let (status, error) = refused(&[&format!("CONNECT {target} HTTP/1.1")]);
            assert_eq!(status, 400, "{target}");
            assert!(
                matches!(error, Error::InvalidTarget(_)),
                "{target}: {error}"
            );
        }
    }

    #[test]
    fn with_content_is_refused() {
        let (status, _) = refused(&["CONNECT a.test:443 HTTP/1.1", "Content-Length: 3"]);
        assert_eq!(status, 400);
        let (status, _) = refused(&["CONNECT a.test:443 HTTP/1.1", "Transfer-Encoding: chunked"]);
        assert_eq!(status, 400);
        request(b"CONNECT a.test:443 HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    }
}

mod forward {
    use super::*;

    #[test]
    fn sends_the_target_what_a_browser_would_send_it_directly() {
        let (request, early) = forwarded(&[
            "GET http://example.org/a?b=c HTTP/1.1",
            "Host: example.org",
            "User-Agent: test",
            "Proxy-Connection: keep-alive",
            "Accept: */*",
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "Keep-Alive: timeout=5",
            "TE: trailers",
            "Proxy-Authorization: Basic Zm9vOmJhcg==",
            "Cookie: a=b; c=d",
        ]);
        assert_eq!(request.target.authority(), "example.org:80");
        assert_eq!(
            early,
            "GET /a?b=c HTTP/1.1\r\nHost: example.org\r\nUser-Agent: test\r\nAccept: */*\r\nCookie: a=b; c=d\r\n\
             Connection: close\r\n\r\n"
        );
        assert!(!request.exchange.unwrap().is_holding());
    }

    #[test]
    fn answers_nothing_itself_when_the_target_is_connected() {
        assert!(
            forwarded(&["GET http://a.test/ HTTP/1.1"])
                .0
                .success()
                .is_empty()
        );
    }

    #[test]
    fn the_host_is_the_one_of_the_request_target() {
        let (_, early) = forwarded(&["GET http://a.test:8080/ HTTP/1.1", "Host: other.test"]);
        assert_eq!(
            early,
            "GET / HTTP/1.1\r\nHost: a.test:8080\r\nConnection: close\r\n\r\n"
        );
        let (request, early) = forwarded(&["GET HTTP://[2001:db8::1]:80/ HTTP/1.1"]);
        assert_eq!(request.target.authority(), "[2001:db8::1]:80");
        assert!(early.contains("\r\nHost: [2001:db8::1]\r\n"), "{early}");
    }

    #[test]
    fn the_path_is_in_origin_form() {
        for (line, expected) in [
            ("GET http://a.test HTTP/1.1", "GET / HTTP/1.1\r\n"),
            ("GET http://a.test?q=/ HTTP/1.1", "GET /?q=/ HTTP/1.1\r\n"),
            (
                "GET http://a.test//b@c:d HTTP/1.1",
                "GET //b@c:d HTTP/1.1\r\n",
            ),
            (
                "GET http://a.test/http://b.test/ HTTP/1.1",
                "GET /http://b.test/ HTTP/1.1\r\n",
            ),
            ("OPTIONS http://a.test HTTP/1.1", "OPTIONS * HTTP/1.1\r\n"),
            ("OPTIONS http://a.test/ HTTP/1.1", "OPTIONS / HTTP/1.1\r\n"),
            ("GET http://a.test/ü HTTP/1.1", "GET /ü HTTP/1.1\r\n"),
            ("GET http://a.test/ HTTP/1.0", "GET / HTTP/1.0\r\n"),
        ] {
            let (_, early) = forwarded(&[line]);
            assert!(early.starts_with(expected), "{line}: {early}");
        }
    }

    #[test]
    fn an_upload_reaches_the_target_and_the_next_request_does_not() {
        let first = "POST http://a.test/ HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
        let next = "GET http://b.test/secret HTTP/1.1\r\nCookie: for-b\r\n\r\n";
        let bytes = [first, next].concat();
        for split in 1..bytes.len() {
            let pieces = [&bytes.as_bytes()[..split], &bytes.as_bytes()[split..]];
            let Outcome {
                end: End::Request(request),
                ..
            } = converse(Negotiation::new(None), pieces)
            else {
                panic!("no request")
            };
            assert!(
                request.early.ends_with(b"\r\n\r\nhello"),
                "{:?}",
                String::from_utf8_lossy(&request.early)
            );
        }
    }

    #[test]
    fn a_chunked_upload_keeps_its_framing() {
        let chunks = "5\r\nhello\r\n0\r\n\r\n";
        let bytes = format!(
            "POST http://a.test/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{chunks}GET"
        );
        let request = request(bytes.as_bytes());
        let early = String::from_utf8(request.early).unwrap();
        assert!(
            early.contains("\r\nTransfer-Encoding: gzip, chunked\r\n"),
            "{early}"
        );
        assert!(early.ends_with(&format!("\r\n\r\n{chunks}")), "{early}");
    }

    #[test]
    fn a_websocket_in_clear_stays_upgradable() {
        let (request, early) = forwarded(&[
            "GET http://a.test/chat HTTP/1.1",
            "Host: a.test",
            "Connection: keep-alive, Upgrade",
            "Upgrade: WebSocket",
            "Sec-WebSocket-Key: x",
        ]);
        assert!(
            early.ends_with(
                "Sec-WebSocket-Key: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            ),
            "{early}"
        );
        assert!(request.exchange.unwrap().is_holding());
    }

    #[test]
    fn an_upgrade_to_another_protocol_is_left_out() {
        let (request, early) = forwarded(&[
            "GET http://a.test/ HTTP/1.1",
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ]);
        assert_eq!(
            early,
            "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
        );
        assert!(!request.exchange.unwrap().is_holding());
    }

    #[test]
    fn a_websocket_address_is_the_http_address_it_stands_for() {
        let (request, early) = forwarded(&[
            "GET ws://a.test/chat?x HTTP/1.1",
            "Connection: Upgrade",
            "Upgrade: websocket",
        ]);
        assert_eq!(request.target.authority(), "a.test:80");
        assert!(
            early.starts_with("GET /chat?x HTTP/1.1\r\nHost: a.test\r\n"),
            "{early}"
        );
        let (request, _) = forwarded(&["GET WS://a.test:8080 HTTP/1.1"]);
        assert_eq!(request.target.authority(), "a.test:8080");
    }

    #[test]
    fn what_follows_an_upgrade_request_is_held_back() {
        let upgrade = head(&[
            "GET http://a.test/ HTTP/1.1",
            "Connection: Upgrade",
            "Upgrade: websocket",
        ]);
        let next = "GET http://b.test/ HTTP/1.1\r\nCookie: for-b\r\n\r\n";
        let request = request([&upgrade, next].concat().as_bytes());
        assert!(request.early.ends_with(b"Upgrade: websocket\r\n\r\n"));
        let mut exchange = request.exchange.unwrap();
        assert!(exchange.take_held().is_empty());
        let _ = exchange.accept_answer(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
        assert_eq!(exchange.take_held(), next.as_bytes());
    }

    #[test]
    fn the_request_target_is_bytes_in_whatever_encoding() {
        for path in [&b"/\xc4\xe3?\xba\xc3"[..], b"/caf\xe9", "/ü".as_bytes()] {
            let line = [b"GET http://a.test", path, b" HTTP/1.1\r\n\r\n"].concat();
            let early = request(&line).early;
            let expected = [b"GET ", path, b" HTTP/1.1\r\n"].concat();
            assert!(early.starts_with(&expected), "{:?}", early.escape_ascii());
        }
    }

    #[test]
    fn a_user_name_in_the_address_becomes_a_field() {
        for (user, decoded) in [
            ("user:secret", "user:secret"),
            ("user", "user:"),
            ("u%40x:a%3ab%", "u@x:a:b%"),
            ("a@b:c", "a@b:c"),
        ] {
            let (request, early) = forwarded(&[&format!("GET http://{user}@a.test/p HTTP/1.1")]);
            assert_eq!(request.target.authority(), "a.test:80");
            let value = base64::engine::general_purpose::STANDARD.encode(decoded);
            assert_eq!(
                early,
                format!(
                    "GET /p HTTP/1.1\r\nHost: a.test\r\nAuthorization: Basic {value}\r\nConnection: close\r\n\r\n"
                )
            );
        }
    }

    #[test]
    fn a_user_name_in_the_address_gives_way_to_the_programs_own_field() {
        for user in ["user:secret@", "@"] {
            let (_, early) = forwarded(&[
                &format!("GET http://{user}a.test/ HTTP/1.1"),
                "Authorization: Bearer x",
            ]);
            assert_eq!(
                early,
                "GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n"
            );
        }
    }

    #[test]
    fn another_scheme_is_refused() {
        for scheme in ["https", "ftp", "wss"] {
            assert_eq!(
                refused(&[&format!("GET {scheme}://a.test/ HTTP/1.1")]),
                (400, Error::UnsupportedScheme)
            );
        }
    }

    #[test]
    fn a_target_that_is_none_is_refused() {
        for (target, reason) in [
            ("http:///a", TargetError::InvalidName),
            ("http://a%2eb/", TargetError::InvalidName),
            ("http://a\\b/", TargetError::InvalidName),
            ("http://user@/", TargetError::InvalidName),
            ("http://b\u{fc}cher.test/", TargetError::InvalidName),
            ("http://a.test:http/", TargetError::InvalidPort),
            ("http://[::1/", TargetError::InvalidAddress),
            ("http://::1/", TargetError::InvalidName),
        ] {
            assert_eq!(
                refused(&[&format!("GET {target} HTTP/1.1")]),
                (400, reason.into()),
                "{target}"
            );
        }
        assert_eq!(refused(&["GET a.test:80 HTTP/1.1"]).0, 400);
        assert_eq!(refused(&["GET http://a.test/#b HTTP/1.1"]).0, 400);
    }
}

mod smuggling {
    use super::*;

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for lines in [
            &["Content-Length: 5", "Transfer-Encoding: chunked"][..],
            &["Content-Length: 5", "Content-Length: 5"],
            &["Content-Length: 5, 5"],
            &["Content-Length: +5"],
            &["Content-Length: "],
            &["Content-Length: 0x5"],
            &["Content-Length: 99999999999999999999"],
            &["Transfer-Encoding: identity"],
            &["Transfer-Encoding: chunked, gzip"],
            &["Transfer-Encoding: chunked, chunked"],
            &["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"],
            &["Transfer-Encoding: "],
            &["Transfer-Encoding: xchunked"],
            &["Host: a.test", "Host: b.test"],
            &["Host: a.test", "host: a.test"],
            &["Connection: Content-Length", "Content-Length: 5"],
            &[
                "Connection: transfer-encoding",
                "Transfer-Encoding: chunked",
            ],
            &["Connection: Host"],
            &["A: b", " folded: c"],
            &["A: b", "\tfolded"],
            &["A : b"],
            &["A: b\rC: d"],
            &["A: b\nC: d"],
            &["A: b\0"],
            &[": b"],
            &["no colon"],
        ] {
            let lines = [&["POST http://a.test/ HTTP/1.1"], lines].concat();
            let (status, error) = refused(&lines);
            assert_eq!(status, 400, "{lines:?}");
            assert!(
                matches!(error, Error::MalformedRequest(_)),
                "{lines:?}: {error}"
            );
        }
        assert_eq!(
            refused(&["POST http://a.test/ HTTP/1.0", "Transfer-Encoding: chunked"]).0,
            400
        );
        assert_eq!(refused(&["POST  http://a.test/ HTTP/1.1"]).0, 400);
        assert_eq!(refused(&["POST http://a.test/ b HTTP/1.1"]).0, 400);
    }
}

mod limits {
    use super::*;

    fn of_length(length: usize) -> Vec<u8> {
        let (start, end) = ("GET http://a.test/ HTTP/1.1\r\nA: ", "\r\n\r\n");
        format!(
            "{start}{}{end}",
            "a".repeat(length - start.len() - end.len())
        )
        .into_bytes()
    }

    #[test]
    fn a_head_of_32_kib_is_served_and_a_longer_one_is_answered() {
        request(&of_length(MAX_HEAD));
        let (reply, error) = rejection(&of_length(MAX_HEAD + 1));
        assert!(
            reply.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"),
            "{reply}"
        );
        assert_eq!(error, Error::HeadTooLarge);
    }

    #[test]
    fn an_endless_head_is_answered_as_soon_as_it_is_too_long() {
        let endless = [b"GET http://a.test/", &[b'a'; MAX_HEAD][..]].concat();
        let mut negotiation = Negotiation::new(None);
        assert_eq!(
            negotiation.advance(&endless[..MAX_HEAD]),
            ech_workers_proxy::Progress::NeedMore
        );
        assert_eq!(
            converse(negotiation, [&b"a"[..]]).end,
            End::Reject(Error::HeadTooLarge)
        );
    }

    #[test]
    fn fields_are_counted_up_to_256() {
        for count in [30, 31, 32, 33, 254, 256] {
            let lines = [&["GET http://a.test/ HTTP/1.1"][..], &vec!["A: b"; count]].concat();
            let (_, early) = forwarded(&lines);
            assert_eq!(early.matches("A: b\r\n").count(), count);
        }
        let lines = [&["GET http://a.test/ HTTP/1.1"][..], &["A: b"; 257]].concat();
        assert_eq!(refused(&lines), (431, Error::HeadTooLarge));
    }

    #[test]
    fn a_thousand_fields_are_too_many() {
        let lines = [&["GET http://a.test/ HTTP/1.1"][..], &["A:b"; 1000]].concat();
        assert_eq!(refused(&lines), (431, Error::HeadTooLarge));
    }

    #[test]
    fn http_2_is_answered_with_the_versions_that_work() {
        assert_eq!(
            refused(&["PRI * HTTP/2.0"]),
            (505, Error::UnsupportedVersion)
        );
        assert_eq!(
            refused(&["GET http://a.test/ HTTP/1.2"]),
            (505, Error::UnsupportedVersion)
        );
    }
}

mod authentication {
    use super::*;

    fn ask(authorization: &[&str]) -> Outcome {
        let credentials = Credentials::new("alice", "s3:cret").unwrap();
        let lines = [&["CONNECT a.test:443 HTTP/1.1"], authorization].concat();
        converse(
            Negotiation::new(Some(credentials)),
            [head(&lines).as_bytes()],
        )
    }

    #[test]
    fn the_right_password_opens_the_proxy() {
        for value in ["Basic YWxpY2U6czM6Y3JldA==", "basic  YWxpY2U6czM6Y3JldA"] {
            let outcome = ask(&[&format!("Proxy-Authorization: {value}")]);
            assert!(
                matches!(outcome.end, End::Request(_)),
                "{value}: {outcome:?}"
            );
        }
    }

    #[test]
    fn a_browser_is_asked_for_the_password() {
        let Outcome { sent, end } = ask(&[]);
        let reply = String::from_utf8(sent).unwrap();
        assert!(
            reply.starts_with("HTTP/1.1 407 Proxy Authentication Required\r\n"),
            "{reply}"
        );
        assert!(
            reply.contains(
                "\r\nProxy-Authenticate: Basic realm=\"ech-workers\", charset=\"UTF-8\"\r\n"
            ),
            "{reply}"
        );
        assert_eq!(end, End::Reject(Error::AuthenticationRequired));
    }

    #[test]
    fn a_wrong_password_does_not_open_it() {
        for value in [
            "Basic YWxpY2U6czM6Y3JlVA==",
            "Basic !!!!",
            "Basic",
            "Basic ",
            "Bearer YWxpY2U6czM6Y3JldA==",
            "Basic YWxpY2U=",
        ] {
            let outcome = ask(&[&format!("Proxy-Authorization: {value}")]);
            assert!(outcome.sent.starts_with(b"HTTP/1.1 407 "), "{value}");
            assert_eq!(
                outcome.end,
                End::Reject(Error::AuthenticationFailed),
                "{value}"
            );
        }
        let right = "Proxy-Authorization: Basic YWxpY2U6czM6Y3JldA==";
        assert_eq!(
            ask(&[right, right]).end,
            End::Reject(Error::AuthenticationFailed)
        );
        // The target's own password is not the proxy's.
        assert_eq!(
            ask(&["Authorization: Basic YWxpY2U6czM6Y3JldA=="]).end,
            End::Reject(Error::AuthenticationRequired)
        );
    }
}

mod replies {
    use super::*;

    /// Splits a reply and checks what a client relies on to read it.
    #[track_caller]
    fn read(reply: &[u8]) -> (String, String) {
        let reply = String::from_utf8(reply.to_vec()).unwrap();
        let (head, text) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nConnection: close"), "{head}");
        assert!(head.contains("\r\nContent-Type: text/plain"), "{head}");
        (head.to_owned(), text.to_owned())
    }

    fn announced(head: &str) -> usize {
        let (_, value) = head.split_once("\r\nContent-Length: ").unwrap();
        value.split("\r\n").next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_browser_that_opens_the_port_is_told_what_it_is() {
        for line in [
            "GET / HTTP/1.1",
            "GET /favicon.ico HTTP/1.1",
            "OPTIONS * HTTP/1.1",
        ] {
            let (reply, error) = rejection(head(&[line, "Host: 127.0.0.1:1080"]).as_bytes());
            let (head, text) = read(reply.as_bytes());
            assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
            assert!(text.contains("proxy port"), "{text}");
            assert_eq!(error, Error::NotAProxyRequest);
        }
    }

    #[test]
    fn a_failure_says_what_happened() {
        let request = request(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n");
        for (failure, status, proxy_status) in [
            (Failure::General, 502, "destination_unavailable"),
            (Failure::NotAllowed, 403, "destination_ip_prohibited"),
            (
                Failure::NetworkUnreachable,
                502,
                "destination_ip_unroutable",
            ),
            (Failure::HostUnreachable, 502, "destination_ip_unroutable"),
            (Failure::ConnectionRefused, 502, "connection_refused"),
            (Failure::TtlExpired, 502, "destination_ip_unroutable"),
            (Failure::CommandNotSupported, 501, "http_request_denied"),
            (Failure::AddressTypeNotSupported, 501, "http_request_denied"),
            (Failure::TimedOut, 504, "connection_timeout"),
            (Failure::NameNotFound, 502, "dns_error"),
            (Failure::TunnelDown, 503, "proxy_internal_error"),
        ] {
            let (head, text) = read(&request.failure(failure, "the cause"));
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{failure:?}: {head}"
            );
            assert!(
                head.contains(&format!(
                    "\r\nProxy-Status: ech-workers; error={proxy_status}\r\n"
                )),
                "{head}"
            );
            assert_eq!(text, format!("ech-workers: {failure}: the cause\n"));
            assert_eq!(announced(&head), text.len());
        }
    }

    #[test]
    fn the_answer_to_head_has_no_content() {
        let request = request(b"HEAD http://a.test/ HTTP/1.1\r\n\r\n");
        let (head, text) = read(&request.failure(Failure::TunnelDown, ""));
        assert!(announced(&head) > 0);
        assert_eq!(text, "");
        let (reply, _) = rejection(b"HEAD / HTTP/1.1\r\n\r\n");
        assert_eq!(read(reply.as_bytes()).1, "");
    }
}
