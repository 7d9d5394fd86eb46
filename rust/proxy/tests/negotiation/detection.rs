use ech_workers_proxy::{Error, Negotiation, Progress};

use crate::rejection;

#[test]
fn nothing_is_answered_before_the_first_byte() {
    assert_eq!(Negotiation::new(None).advance(b""), Progress::NeedMore);
}

#[test]
fn a_socks4_client_is_told_so_in_its_protocol() {
    let mut negotiation = Negotiation::new(None);
    let Progress::Reject { reply, error } =
        negotiation.advance(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00")
    else {
        panic!("SOCKS4 was let in");
    };
    assert_eq!(reply, [0, 0x5b, 0, 0, 0, 0, 0, 0]);
    assert_eq!(error, Error::Socks4);
}

#[test]
fn a_tls_client_gets_an_alert_and_not_a_page() {
    let mut negotiation = Negotiation::new(None);
    let Progress::Reject { reply, error } = negotiation.advance(b"\x16\x03\x01\x02\x00\x01") else {
        panic!("TLS was let in");
    };
    assert_eq!(reply, [21, 3, 3, 0, 2, 2, 40]);
    assert_eq!(error, Error::Tls);
}

#[test]
fn an_unknown_protocol_is_closed_without_a_word() {
    for byte in [0, 1, 3, 6, b' ', b'\r', b'1', 0x80, 0xff] {
        assert_eq!(
            rejection(&[byte]),
            (String::new(), Error::UnknownProtocol(byte))
        );
    }
}

#[test]
fn another_line_protocol_is_refused_at_its_first_line() {
    for line in [
        "EHLO mail.example\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "GET /\r\n",
        "help\n",
    ] {
        let (reply, error) = rejection(line.as_bytes());
        assert!(
            reply.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{line:?}: {reply}"
        );
        assert!(
            matches!(error, Error::MalformedRequest(_)),
            "{line:?}: {error}"
        );
    }
}

#[test]
fn a_negotiation_that_is_over_stays_over() {
    let mut negotiation = Negotiation::new(None);
    let finished = || Progress::Reject {
        reply: Vec::new(),
        error: Error::Finished,
    };
    assert!(matches!(
        negotiation.advance(b"CONNECT a.test:1 HTTP/1.1\r\n\r\n"),
        Progress::Request(_)
    ));
    assert_eq!(
        negotiation.advance(b"CONNECT a.test:1 HTTP/1.1\r\n\r\n"),
        finished()
    );
    assert_eq!(negotiation.timed_out(), finished());
    assert_eq!(negotiation.end_of_input(), finished());
}

#[test]
fn a_client_that_stops_in_the_middle_gets_its_protocols_own_error() {
    let cases: [(&[u8], &[u8]); 5] = [
        (b"", b""),
        (b"\x05", b"\x05\xff"),
        (b"\x05\x01\x02\x01\x05al", b"\x01\x01"),
        (
            b"\x05\x01\x00\x05\x01\x00",
            b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00",
        ),
        (b"GET http://a.te", b"HTTP/1.1 408 Request Timeout\r\n"),
    ];
    for (bytes, expected) in cases {
        let mut negotiation = Negotiation::new(None);
        while let Progress::Send(_) = negotiation.advance(bytes) {
            if negotiation.advance(b"") == Progress::NeedMore {
                break;
            }
        }
        let Progress::Reject { reply, error } = negotiation.timed_out() else {
            panic!("not rejected")
        };
        assert!(reply.starts_with(expected), "{bytes:?}: {reply:?}");
        assert_eq!(reply.is_empty(), expected.is_empty());
        assert_eq!(error, Error::TimedOut);
    }
}

#[test]
fn a_client_that_closes_in_the_middle_is_not_called_slow() {
    let mut negotiation = Negotiation::new(None);
    assert_eq!(negotiation.advance(b"GET http://a.te"), Progress::NeedMore);
    let Progress::Reject { reply, error } = negotiation.end_of_input() else {
        panic!("not rejected")
    };
    assert!(reply.starts_with(b"HTTP/1.1 400 Bad Request\r\n"));
    assert_eq!(error, Error::EndOfInput);
}
