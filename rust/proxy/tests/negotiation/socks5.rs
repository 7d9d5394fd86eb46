use ech_workers_proxy::{
    Credentials, Error, Failure, Host, Negotiation, Progress, RequestKind, TargetError,
};

use crate::{End, Outcome, converse};

const NO_AUTHENTICATION: &[u8] = &[5, 1, 0];

/// A CONNECT request (RFC 1928 section 4) for `address`, its type in front, and port 443.
fn connect(address: &[u8]) -> Vec<u8> {
    [&[5, 1, 0], address, &[1, 187]].concat()
}

fn domain(name: &str) -> Vec<u8> {
    [&[3, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
}

fn alice() -> Negotiation {
    Negotiation::new(Some(Credentials::new("alice", "s3cret").unwrap()))
}

/// The reply to a request after a greeting without authentication, and why it was refused.
#[track_caller]
fn refused(request: &[u8]) -> (u8, Error) {
    let Outcome {
        sent,
        end: End::Reject(error),
    } = converse(Negotiation::new(None), [NO_AUTHENTICATION, request])
    else {
        panic!("not refused")
    };
    assert_eq!(sent.len(), 12, "{sent:?}");
    assert_eq!(sent[..3], [5, 0, 5]);
    (sent[3], error)
}

#[track_caller]
fn host_of(address: &[u8]) -> Host {
    let bytes = [NO_AUTHENTICATION, &connect(address)].concat();
    let Outcome {
        sent,
        end: End::Request(request),
    } = converse(Negotiation::new(None), [&bytes[..]])
    else {
        panic!("no request")
    };
    assert_eq!(sent, [5, 0]);
    assert_eq!(request.kind, RequestKind::Socks5);
    assert_eq!(request.target.port, 443, "the port is big-endian");
    assert_eq!((request.early, request.exchange), (Vec::new(), None));
    request.target.host
}

#[test]
fn every_kind_of_address_reaches_the_far_end_as_it_was_given() {
    assert_eq!(
        host_of(&[1, 192, 0, 2, 7]),
        Host::Ip("192.0.2.7".parse().unwrap())
    );
    let ipv6 = [4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(host_of(&ipv6), Host::Ip("2001:db8::1".parse().unwrap()));
    assert_eq!(
        host_of(&domain("example.org")),
        Host::Domain("example.org".into())
    );
}

#[test]
fn an_address_in_the_domain_field_is_an_address() {
    assert_eq!(
        host_of(&domain("192.0.2.7")),
        Host::Ip("192.0.2.7".parse().unwrap())
    );
    assert_eq!(
        host_of(&domain("2001:db8::1")),
        Host::Ip("2001:db8::1".parse().unwrap())
    );
    assert_eq!(
        host_of(&domain("[2001:db8::1]")),
        Host::Ip("2001:db8::1".parse().unwrap())
    );
}

#[test]
fn data_sent_along_with_the_request_is_not_lost() {
    let bytes = [
        NO_AUTHENTICATION,
        &connect(&domain("a.test")),
        b"GET / HTTP/1.1\r\n",
    ]
    .concat();
    let Outcome {
        end: End::Request(request),
        ..
    } = converse(Negotiation::new(None), [&bytes[..]])
    else {
        panic!("no request")
    };
    assert_eq!(request.early, b"GET / HTTP/1.1\r\n");
}

#[test]
fn bind_and_udp_associate_are_answered_with_command_not_supported() {
    for command in [0, 2, 3, 4, 255] {
        let mut request = connect(&[1, 127, 0, 0, 1]);
        request[1] = command;
        assert_eq!(refused(&request), (7, Error::CommandNotSupported(command)));
    }
}

#[test]
fn an_unknown_address_type_is_answered_as_such() {
    for address_type in [0, 2, 5, 255] {
        assert_eq!(
            refused(&[5, 1, 0, address_type]),
            (8, Error::AddressTypeNotSupported(address_type))
        );
    }
}

#[test]
fn a_request_that_names_no_target_is_a_general_failure() {
    assert_eq!(
        refused(&connect(&domain(""))),
        (1, TargetError::InvalidName.into())
    );
    assert_eq!(
        refused(&connect(&domain("a\nb"))),
        (1, TargetError::InvalidName.into())
    );
    assert_eq!(
        refused(&connect(&[3, 2, 0xc3, 0x28])),
        (1, TargetError::InvalidName.into())
    );
    assert_eq!(
        refused(&[5, 1, 0, 1, 127, 0, 0, 1, 0, 0]),
        (1, TargetError::InvalidPort.into())
    );
    assert_eq!(refused(&[4, 1, 0]), (1, Error::SocksVersion(4)));
}

#[test]
fn a_program_without_a_usable_method_is_told_so() {
    for greeting in [&[5, 0][..], &[5, 1, 1], &[5, 2, 1, 0x80]] {
        let Outcome { sent, end } = converse(Negotiation::new(None), [greeting]);
        assert_eq!(sent, [5, 255]);
        assert_eq!(
            end,
            End::Reject(Error::NoAcceptableMethod {
                credentials_required: false
            })
        );
    }
    let Outcome { sent, end } = converse(alice(), [NO_AUTHENTICATION]);
    assert_eq!(sent, [5, 255]);
    assert_eq!(
        end,
        End::Reject(Error::NoAcceptableMethod {
            credentials_required: true
        })
    );
}

#[test]
fn the_right_password_opens_the_proxy() {
    let request = connect(&domain("a.test"));
    let Outcome { sent, end } = converse(
        alice(),
        [
            &b"\x05\x02\x00\x02"[..],
            b"\x01\x05alice\x06s3cret",
            &request,
        ],
    );
    assert_eq!(sent, [5, 2, 1, 0]);
    assert!(matches!(end, End::Request(_)));
}

#[test]
fn a_wrong_password_does_not() {
    for pair in [
        &b"\x01\x05alice\x06s3creT"[..],
        b"\x01\x03bob\x06s3cret",
        b"\x01\x00\x00",
        b"\x01\x06s3cret\x05alice",
    ] {
        let Outcome { sent, end } = converse(alice(), [&b"\x05\x01\x02"[..], pair]);
        assert_eq!(sent, [5, 2, 1, 1]);
        assert_eq!(end, End::Reject(Error::AuthenticationFailed));
    }
    let Outcome { sent, end } = converse(alice(), [&b"\x05\x01\x02"[..], b"\x05"]);
    assert_eq!(sent, [5, 2, 1, 1]);
    assert_eq!(end, End::Reject(Error::AuthenticationVersion(5)));
}

#[test]
fn a_program_that_insists_on_a_password_works_without_one_being_set() {
    let request = connect(&domain("a.test"));
    let Outcome { sent, end } = converse(
        Negotiation::new(None),
        [&b"\x05\x01\x02"[..], b"\x01\x01x\x01y", &request],
    );
    assert_eq!(sent, [5, 2, 1, 0]);
    assert!(matches!(end, End::Request(_)));
}

#[test]
fn the_longest_messages_of_every_stage_work_in_one_piece() {
    let credentials = Credentials::new(&"u".repeat(255), &"p".repeat(255)).unwrap();
    let name = format!("{0}.{0}.{0}.{1}.", "a".repeat(63), "b".repeat(61));
    let greeting = [&[5, 255][..], &[2; 255]].concat();
    let pair = [&[1, 255][..], &[b'u'; 255], &[255], &[b'p'; 255]].concat();
    let bytes = [greeting, pair, connect(&domain(&name))].concat();
    let Outcome {
        sent,
        end: End::Request(request),
    } = converse(Negotiation::new(Some(credentials)), [&bytes[..]])
    else {
        panic!("no request")
    };
    assert_eq!(sent, [5, 2, 1, 0]);
    assert_eq!(request.target.host, Host::Domain(name));
}

#[test]
fn every_outcome_has_its_reply_code() {
    let mut negotiation = Negotiation::new(None);
    assert!(matches!(
        negotiation.advance(NO_AUTHENTICATION),
        Progress::Send(_)
    ));
    let Progress::Request(request) = negotiation.advance(&connect(&domain("a.test"))) else {
        panic!("no request")
    };
    assert_eq!(request.success(), [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for (failure, code) in [
        (Failure::General, 1),
        (Failure::NotAllowed, 2),
        (Failure::NetworkUnreachable, 3),
        (Failure::HostUnreachable, 4),
        (Failure::ConnectionRefused, 5),
        (Failure::TtlExpired, 6),
        (Failure::CommandNotSupported, 7),
        (Failure::AddressTypeNotSupported, 8),
        (Failure::TimedOut, 6),
        (Failure::NameNotFound, 4),
        (Failure::TunnelDown, 1),
    ] {
        assert_eq!(
            request.failure(failure, "why"),
            [5, code, 0, 1, 0, 0, 0, 0, 0, 0],
            "{failure:?}"
        );
    }
}
