//! Resumption with ECH: the ticket is in the encrypted hello, and the outer one is the browser's resumption hello all the same, with a placeholder where
//! the ticket would be (RFC 9849 section 6.1.2).

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

mod loopback;

use std::time::Duration;

use ech_workers_boringssl::ssl::SslContext;
use ech_workers_tls::authority::Validity;
use ech_workers_tls::ech::{EchKey, config_list};
use ech_workers_tls::hello::ClientHello;
use ech_workers_tls::{ClientParameters, Ech, HandshakeError, Profile};
use loopback::{
    INNER, PUBLIC, Recorder, World, dial, echo, key, parameters, ping, raw_ech_keys, raw_echo,
    raw_server,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// It stands before whatever a client sends second (RFC 8446 appendix D.4).
const CHANGE_CIPHER_SPEC: &[u8] = &[20, 3, 3, 0, 1, 1];

/// pre_shared_key as it must be in each outer hello: one identity of a ticket, one binder (RFC 8446 section 4.2.11).
#[derive(Debug, PartialEq)]
struct PreSharedKey {
    identity: Vec<u8>,
    obfuscated_ticket_age: [u8; 4],
    binder: Vec<u8>,
}

impl PreSharedKey {
    fn of(hello: &ClientHello) -> Self {
        fn take(bytes: &mut &[u8], length: usize) -> Vec<u8> {
            let (taken, rest) = bytes.split_at(length);
            *bytes = rest;
            taken.to_vec()
        }
        fn number(bytes: &mut &[u8]) -> usize {
            take(bytes, 2)
                .iter()
                .fold(0, |number, byte| number << 8 | usize::from(*byte))
        }
        let body = &mut hello.extension(41).unwrap();
        let identities = number(body);
        let length = number(body);
        assert_eq!(identities, 2 + length + 4, "one identity");
        let identity = take(body, length);
        let obfuscated_ticket_age = take(body, 4).try_into().unwrap();
        let binders = number(body);
        assert_eq!(binders, body.len(), "nothing behind the binders");
        let length = take(body, 1)[0];
        assert_eq!(binders, 1 + usize::from(length), "one binder");
        Self {
            identity,
            obfuscated_ticket_age,
            binder: take(body, length.into()),
        }
    }
}

fn assert_resumption_form(
    hello: &ClientHello,
    profile: &Profile,
    parameters: ClientParameters<'_>,
) {
    let mut expected = profile.extensions(parameters.form, true);
    expected.retain(|id| *id != 35);
    expected.push(41);
    assert_eq!(hello.extension_ids(), expected, "{}", profile.name);
    assert_eq!(hello.server_name(), Some(PUBLIC));
}

/// The hellos of one connection.
fn hellos(mut sent: &[u8]) -> Vec<ClientHello> {
    let mut found = Vec::new();
    while let Ok(Some(hello)) = ClientHello::from_records(sent) {
        sent = &sent[hello.wire_length..];
        sent = sent.strip_prefix(CHANGE_CIPHER_SPEC).unwrap_or(sent);
        found.push(hello);
    }
    found
}

/// A server that asks for a HelloRetryRequest of every profile, and gives tickets.
fn retrying(world: &World, key: &EchKey) -> SslContext {
    let identity = world
        .authority
        .issue(&[INNER, PUBLIC], Validity::days(1))
        .unwrap();
    let mut server = raw_server(&identity);
    server.set_curves_list("P-384").unwrap();
    server.set_ech_keys(&raw_ech_keys(key)).unwrap();
    server.build()
}

#[tokio::test]
async fn a_resumption_with_ech_shows_the_browsers_resumption_hello_and_no_ticket() {
    let key = key(5);
    let world = World::with_ech(&key);
    let recorder = Recorder::before(echo(&world.server).await).await;
    let list = config_list(&[key]);
    for profile in ech_workers_tls::profile::ALL {
        let parameters = ClientParameters {
            profile,
            session_key: Some(profile.name),
            ..parameters(Ech::List(&list))
        };
        let mut offered = Vec::new();
        for connection in 0..4 {
            let before = recorder.sent().len();
            let mut tls = dial(recorder.address, &world.client, parameters)
                .await
                .unwrap();
            assert!(tls.info().ech_accepted);
            assert_eq!(tls.info().resumed, connection > 0);
            ping(&mut tls).await;
            let [hello] = &hellos(&recorder.sent()[before..])[..] else {
                panic!("one hello");
            };
            if connection == 0 {
                assert_eq!(
                    hello.extension_ids(),
                    profile.extensions(parameters.form, true)
                );
            } else {
                assert_resumption_form(hello, profile, parameters);
                offered.push(PreSharedKey::of(hello));
            }
        }
        for pair in offered.windows(2) {
            let [one, two] = pair else { unreachable!() };
            assert_eq!(one.identity.len(), two.identity.len());
            // TLS_AES_128_GCM_SHA256.
            assert_eq!(one.binder.len(), 32);
            assert_ne!(one.identity, two.identity);
            assert_ne!(one.obfuscated_ticket_age, two.obfuscated_ticket_age);
            assert_ne!(one.binder, two.binder);
        }
    }
    recorder.assert_no_inner_name();
}

#[tokio::test]
async fn a_rejection_with_a_ticket_at_hand_brings_newer_keys_which_work() {
    let (stale, fresh) = (key(1), key(2));
    let world = World::with_ech(&stale);
    let recorder = Recorder::before(echo(&world.server).await).await;
    for profile in ech_workers_tls::profile::ALL {
        world
            .server
            .set_ech_keys(std::slice::from_ref(&stale))
            .unwrap();
        let list = config_list(std::slice::from_ref(&stale));
        let parameters = ClientParameters {
            profile,
            session_key: Some(profile.name),
            ..parameters(Ech::List(&list))
        };
        let mut tls = dial(recorder.address, &world.client, parameters)
            .await
            .unwrap();
        ping(&mut tls).await;

        world
            .server
            .set_ech_keys(std::slice::from_ref(&fresh))
            .unwrap();
        let before = recorder.sent().len();
        let error = dial(recorder.address, &world.client, parameters)
            .await
            .unwrap_err();
        assert_resumption_form(&hellos(&recorder.sent()[before..])[0], profile, parameters);
        let HandshakeError::EchRejected {
            public_name,
            retry_configs: Some(retry),
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(public_name, PUBLIC);
        assert_eq!(retry, config_list(std::slice::from_ref(&fresh)));
        let parameters = ClientParameters {
            ech: Ech::List(&retry),
            ..parameters
        };
        let mut tls = dial(recorder.address, &world.client, parameters)
            .await
            .unwrap();
        ping(&mut tls).await;
    }
    recorder.assert_no_inner_name();
}

#[tokio::test]
async fn a_hello_retry_request_is_answered_with_the_same_placeholder_for_the_ticket() {
    let key = key(4);
    let world = World::new();
    let recorder = Recorder::before(raw_echo(retrying(&world, &key), 4)).await;
    let list = config_list(&[key]);
    for profile in ech_workers_tls::profile::ALL {
        let parameters = ClientParameters {
            profile,
            session_key: Some(profile.name),
            ..parameters(Ech::List(&list))
        };
        let mut before = 0;
        for connection in 0..2 {
            before = recorder.sent().len();
            let mut tls = dial(recorder.address, &world.client, parameters)
                .await
                .unwrap();
            let info = tls.info();
            assert!(info.ech_accepted && info.hello_retry);
            assert_eq!(info.resumed, connection > 0);
            ping(&mut tls).await;
        }
        assert_same_placeholder(&recorder.sent()[before..], profile, parameters);
    }
    recorder.assert_no_inner_name();
}

#[tokio::test]
async fn a_hello_retry_request_does_not_hide_a_rejection_from_who_has_a_ticket() {
    let (stale, fresh) = (key(1), key(2));
    let world = World::with_ech(&stale);
    let tickets = echo(&world.server).await;
    let recorder = Recorder::before(raw_echo(retrying(&world, &fresh), 2)).await;
    let list = config_list(&[stale]);
    for profile in ech_workers_tls::profile::ALL {
        let parameters = ClientParameters {
            profile,
            session_key: Some(profile.name),
            ..parameters(Ech::List(&list))
        };
        let mut tls = dial(tickets, &world.client, parameters).await.unwrap();
        ping(&mut tls).await;
        let before = recorder.sent().len();
        let error = dial(recorder.address, &world.client, parameters)
            .await
            .unwrap_err();
        assert!(
            matches!(
                &error,
                HandshakeError::EchRejected { retry_configs: Some(retry), .. }
                    if *retry == config_list(std::slice::from_ref(&fresh))
            ),
            "{error}"
        );
        assert_same_placeholder(&recorder.sent()[before..], profile, parameters);
    }
    recorder.assert_no_inner_name();
}

/// Both hellos are of the resumption form; identities are the same, age and binder are made anew (RFC 8446 section 4.1.2).
fn assert_same_placeholder(sent: &[u8], profile: &Profile, parameters: ClientParameters<'_>) {
    let [first, second] = &hellos(sent)[..] else {
        panic!("two hellos");
    };
    assert_resumption_form(first, profile, parameters);
    assert_resumption_form(second, profile, parameters);
    let (first, second) = (PreSharedKey::of(first), PreSharedKey::of(second));
    assert_eq!(first.identity, second.identity);
    assert_eq!(first.binder.len(), second.binder.len());
    assert_ne!(first.obfuscated_ticket_age, second.obfuscated_ticket_age);
    assert_ne!(first.binder, second.binder);
}

#[tokio::test]
async fn a_server_that_takes_the_placeholder_for_a_ticket_is_refused() {
    let key = key(6);
    let world = World::with_ech(&key);
    let list = config_list(&[key]);
    let parameters = ClientParameters {
        session_key: Some(INNER),
        ..parameters(Ech::List(&list))
    };
    let mut tls = dial(echo(&world.server).await, &world.client, parameters)
        .await
        .unwrap();
    ping(&mut tls).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (result, answer) = tokio::join!(dial(address, &world.client, parameters), async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut sent = vec![0; 4096];
        let length = tcp.read(&mut sent).await.unwrap();
        let hello = ClientHello::from_records(&sent[..length]).unwrap().unwrap();
        assert_resumption_form(&hello, parameters.profile, parameters);
        // supported_versions 1.3, the first pre-shared key, and an X25519 share.
        let mut extensions = vec![
            0, 43, 0, 2, 3, 4, 0, 41, 0, 2, 0, 0, 0, 51, 0, 36, 0, 29, 0, 32,
        ];
        extensions.extend_from_slice(&[9; 32]);
        let mut body = [&[3, 3][..], &[7; 32], &[32]].concat();
        body.extend_from_slice(&hello.session_id);
        body.extend_from_slice(&[0x13, 0x01, 0, 0, extensions.len() as u8]);
        body.extend_from_slice(&extensions);
        let length = body.len() as u8;
        let record = [&[22, 3, 3, 0, length + 4, 2, 0, 0, length][..], &body].concat();
        tcp.write_all(&record).await.unwrap();
        let mut answer = Vec::new();
        // It says so and closes, and does not wait for the rest of a handshake.
        let end = tcp.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(10), end).await;
        answer
    });
    let error = result.unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(_)), "{error}");
    let answer = answer.strip_prefix(CHANGE_CIPHER_SPEC).unwrap_or(&answer);
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 47], "illegal_parameter");
}
