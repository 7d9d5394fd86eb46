//! Encrypted Client Hello: never the real name in clear, rejections that can be believed, keys that change.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

mod loopback;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ech_workers_boringssl::ssl::SslVersion;
use ech_workers_tls::authority::Validity;
use ech_workers_tls::ech::{ConfigList, config_list};
use ech_workers_tls::hello::ClientHello;
use ech_workers_tls::{
    CertificateProblem, ClientParameters, Ech, HandshakeError, Profile, ServerContext, ServerError,
};
use loopback::{
    INNER, PUBLIC, Recorder, World, assert_absent, dial, echo, key, pair, parameters, ping,
    raw_ech_keys, raw_echo, raw_server,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

#[tokio::test]
async fn a_connection_shows_the_public_name_and_serves_the_inner_one() {
    for profile in ech_workers_tls::profile::ALL {
        let key = key(3);
        let world = World::with_ech(&key);
        let recorder = Recorder::before(echo(&world.server).await).await;
        let list = config_list(&[key]);
        let parameters = ClientParameters {
            profile,
            ..parameters(Ech::List(&list))
        };
        let mut tls = dial(recorder.address, &world.client, parameters)
            .await
            .unwrap();
        ping(&mut tls).await;
        let info = tls.info();
        assert!(info.ech_accepted);
        assert_eq!(info.version, "TLSv1.3");
        assert_eq!(info.server_name.as_deref(), Some(INNER));
        assert_eq!(info.public_name.as_deref(), Some(PUBLIC));
        assert_eq!(info.alpn.as_deref(), Some("http/1.1"));
        recorder.assert_no_inner_name();
        let hello = ClientHello::from_records(&recorder.sent())
            .unwrap()
            .unwrap();
        assert_eq!(hello.server_name(), Some(PUBLIC));
        assert_eq!(hello.wire_length, info.hello_length);
    }
}

#[tokio::test]
async fn the_server_learns_both_names_and_which_key_was_used() {
    let key = key(9);
    let world = World::with_ech(&key);
    let list = config_list(&[key]);
    let (_client, server) = pair(&world, parameters(Ech::List(&list))).await;
    let info = server.info();
    assert!(info.ech_accepted);
    assert_eq!(info.server_name.as_deref(), Some(INNER));
    assert_eq!(info.public_name.as_deref(), Some(PUBLIC));
    assert_eq!(info.ech_config_id, Some(9));
}

#[tokio::test]
async fn a_malformed_list_sends_nothing_at_all() {
    let world = World::new();
    let recorder = Recorder::before(echo(&world.server).await).await;
    let good = config_list(&[key(1)]);
    let mut lists: Vec<Vec<u8>> = (0..good.len()).map(|end| good[..end].to_vec()).collect();
    lists.push([&good[..], &[0]].concat());
    lists.push(vec![0xff; 64]);
    let mut outdated = good.clone();
    outdated[2..4].copy_from_slice(&[0xfe, 0x0a]);
    lists.push(outdated);
    for list in lists {
        let error = dial(
            recorder.address,
            &world.client,
            parameters(Ech::List(&list)),
        )
        .await
        .unwrap_err();
        assert!(
            matches!(error, HandshakeError::EchConfigInvalid(_)),
            "{error}"
        );
    }
    assert_eq!(recorder.sent(), []);
}

#[tokio::test]
async fn a_stale_key_brings_authenticated_newer_ones_which_work() {
    let (stale, fresh) = (key(1), key(2));
    let world = World::with_ech(&fresh);
    let recorder = Recorder::before(echo(&world.server).await).await;
    let list = config_list(&[stale]);
    let error = dial(
        recorder.address,
        &world.client,
        parameters(Ech::List(&list)),
    )
    .await
    .unwrap_err();
    let HandshakeError::EchRejected {
        public_name,
        retry_configs: Some(retry),
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(public_name, PUBLIC);
    assert_eq!(retry, config_list(&[fresh]));
    let mut tls = dial(
        recorder.address,
        &world.client,
        parameters(Ech::List(&retry)),
    )
    .await
    .unwrap();
    ping(&mut tls).await;
    recorder.assert_no_inner_name();
}

#[tokio::test]
async fn a_server_without_ech_is_an_error_and_learns_no_name() {
    let world = World::new();
    let recorder = Recorder::before(echo(&world.server).await).await;
    let list = config_list(&[key(1)]);
    let error = dial(
        recorder.address,
        &world.client,
        parameters(Ech::List(&list)),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(
            &error,
            HandshakeError::EchRejected { public_name, retry_configs: None } if public_name == PUBLIC
        ),
        "{error}"
    );
    recorder.assert_no_inner_name();
}

#[tokio::test]
async fn a_server_of_tls_1_2_is_an_error_and_learns_no_name() {
    let world = World::new();
    let identity = world.authority.issue(&[PUBLIC], Validity::days(1)).unwrap();
    let mut server = raw_server(&identity);
    server
        .set_max_proto_version(Some(SslVersion::TLS1_2))
        .unwrap();
    let recorder = Recorder::before(raw_echo(server.build(), 2)).await;
    let list = config_list(&[key(1)]);
    let error = dial(
        recorder.address,
        &world.client,
        parameters(Ech::List(&list)),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(
            error,
            HandshakeError::EchRejected {
                retry_configs: None,
                ..
            }
        ),
        "{error}"
    );
    recorder.assert_no_inner_name();

    let error = dial(
        recorder.address,
        &world.client,
        ClientParameters {
            server_name: PUBLIC,
            ..parameters(Ech::Off)
        },
    )
    .await
    .unwrap_err();
    assert!(matches!(error, HandshakeError::TlsVersion), "{error}");
}

#[tokio::test]
async fn a_server_that_closes_midway_is_an_error_and_learns_no_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let world = World::new();
    let list = config_list(&[key(1)]);
    // After nothing, after half a record, after a record of nonsense, and with a reset.
    for (answer, reset) in [
        (&b""[..], false),
        (&[22, 3, 3, 1, 0, 2, 0][..], false),
        (&[22, 3, 3, 0, 4, 2, 0, 0, 0][..], false),
        (&b""[..], true),
    ] {
        let (result, sent) = tokio::join!(
            dial(address, &world.client, parameters(Ech::List(&list))),
            async {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut sent = vec![0; 4096];
                let length = tcp.read(&mut sent).await.unwrap();
                tcp.try_write(answer).unwrap();
                if reset {
                    tcp.set_zero_linger().unwrap();
                }
                sent.truncate(length);
                sent
            }
        );
        assert_absent(&sent);
        let error = result.unwrap_err();
        match answer.len() {
            0 => assert!(matches!(error, HandshakeError::ResetAfterHello), "{error}"),
            7 => assert!(matches!(error, HandshakeError::Closed), "{error}"),
            _ => assert!(matches!(error, HandshakeError::Tls(_)), "{error}"),
        }
        assert_absent(error.to_string().as_bytes());
    }
}

#[tokio::test]
async fn a_wrong_certificate_for_the_public_name_teaches_nothing() {
    let world = World::new();
    let other = world
        .authority
        .issue(&["other.test"], Validity::days(1))
        .unwrap();
    let inner = world.authority.issue(&[INNER], Validity::days(1)).unwrap();
    for identities in [vec![other], vec![inner]] {
        let server = ServerContext::new(&identities).unwrap();
        server.set_ech_keys(&[key(2)]).unwrap();
        let recorder = Recorder::before(echo(&server).await).await;
        let list = config_list(&[key(1)]);
        let error = dial(
            recorder.address,
            &world.client,
            parameters(Ech::List(&list)),
        )
        .await
        .unwrap_err();
        assert!(
            matches!(
                error,
                HandshakeError::Certificate {
                    problem: CertificateProblem::NameMismatch,
                    outer: true
                }
            ),
            "{error}"
        );
        recorder.assert_no_inner_name();
    }
}

#[tokio::test]
async fn a_hello_retry_request_keeps_the_name_encrypted_and_the_profile() {
    let world = World::new();
    for profile in ech_workers_tls::profile::ALL {
        let identity = world
            .authority
            .issue(&[INNER, PUBLIC], Validity::days(1))
            .unwrap();
        let key = key(4);
        let mut server = raw_server(&identity);
        server.set_curves_list("P-384").unwrap();
        server.set_ech_keys(&raw_ech_keys(&key)).unwrap();
        let recorder = Recorder::before(raw_echo(server.build(), 1)).await;
        let list = config_list(&[key]);
        let mut tls = dial(
            recorder.address,
            &world.client,
            ClientParameters {
                profile,
                ..parameters(Ech::List(&list))
            },
        )
        .await
        .unwrap();
        ping(&mut tls).await;
        assert!(tls.info().hello_retry && tls.info().ech_accepted);
        assert_eq!(tls.info().group, "P-384");
        recorder.assert_no_inner_name();
        let sent = recorder.sent();
        let first = ClientHello::from_records(&sent).unwrap().unwrap();
        // A ChangeCipherSpec stands between the two (RFC 8446 appendix D.4).
        let rest = &sent[first.wire_length..];
        let rest = rest.strip_prefix(&[20, 3, 3, 0, 1, 1]).unwrap_or(rest);
        let second = ClientHello::from_records(rest).unwrap().unwrap();
        assert_eq!(second.extension_ids(), first.extension_ids());
        assert_eq!(second.cipher_suites, first.cipher_suites);
        assert_eq!(second.session_id, first.session_id);
        assert_eq!(second.key_shares(), [(0x18, 97)]);
        assert_eq!(second.ech().unwrap().encapsulated_length, 0);
    }
}

#[tokio::test]
async fn a_retired_key_still_opens_hellos_until_it_is_gone() {
    let (old, new) = (key(1), key(2));
    let world = World::with_ech(&old);
    let address = echo(&world.server).await;
    let list = config_list(std::slice::from_ref(&old));
    let parameters = parameters(Ech::List(&list));
    let mut tls = dial(address, &world.client, parameters).await.unwrap();

    world
        .server
        .set_ech_keys(&[new.clone(), old.with_retry(false)])
        .unwrap();
    ping(&mut tls).await;
    assert!(dial(address, &world.client, parameters).await.is_ok());

    world
        .server
        .set_ech_keys(std::slice::from_ref(&new))
        .unwrap();
    ping(&mut tls).await;
    let error = dial(address, &world.client, parameters).await.unwrap_err();
    assert!(
        matches!(
            &error,
            HandshakeError::EchRejected { retry_configs: Some(retry), .. }
                if ConfigList::parse(retry).unwrap().configs()[0].id == 2
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_change_under_load_lose_no_connection() {
    let (one, two) = (key(1), key(2));
    let world = World::with_ech(&one);
    let server = world.server.clone();
    server
        .set_ech_keys(&[one.clone(), two.clone().with_retry(false)])
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let rotation = {
        let (one, two) = (one.clone(), two.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                server
                    .set_ech_keys(&[two.clone(), one.clone().with_retry(false)])
                    .unwrap();
                server
                    .set_ech_keys(&[one.clone(), two.clone().with_retry(false)])
                    .unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        })
    };
    let address = echo(&world.server).await;
    let tasks: Vec<_> = [one, two]
        .into_iter()
        .map(|key| {
            let client = world.client.clone();
            tokio::spawn(async move {
                let list = config_list(&[key]);
                for _ in 0..50 {
                    let mut tls = dial(address, &client, parameters(Ech::List(&list)))
                        .await
                        .unwrap();
                    assert!(tls.info().ech_accepted);
                    ping(&mut tls).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    rotation.join().unwrap();
}

#[test]
fn keys_that_no_client_could_use_are_refused() {
    let server = World::new().server;
    assert!(matches!(
        server.set_ech_keys(&[]),
        Err(ServerError::NoRetryKey)
    ));
    assert!(matches!(
        server.set_ech_keys(&[key(1).with_retry(false)]),
        Err(ServerError::NoRetryKey)
    ));
    assert!(matches!(
        server.set_ech_keys(&[key(1), key(1)]),
        Err(ServerError::DuplicateId(1))
    ));
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_before_anything_is_sent() {
    let world = World::new();
    let recorder = Recorder::before(echo(&world.server).await).await;
    let list = config_list(&[key(1)]);
    for name in ["", ".", "a..b", "a b", "ü.test", &"a".repeat(254)] {
        let error = dial(
            recorder.address,
            &world.client,
            ClientParameters {
                server_name: name,
                profile: Profile::standard(),
                ..parameters(Ech::List(&list))
            },
        )
        .await
        .unwrap_err();
        assert!(
            matches!(error, HandshakeError::ServerName),
            "{name:?}: {error}"
        );
    }
    assert_eq!(recorder.sent(), []);
}
