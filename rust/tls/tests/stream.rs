//! The stream between the handshake and its end.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

mod loopback;

use std::future::poll_fn;
use std::io;
use std::task::{Poll, ready};
use std::time::Duration;

use ech_workers_tls::hello::ClientHello;
use ech_workers_tls::{ClientParameters, Ech, RECORD_MAX, TlsStream};
use loopback::{Recorder, World, dial, echo, pair, parameters, ping};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HUNDRED_MEGABYTES: usize = 100_000_000;

/// A byte stream in which every position can be told from its neighbours.
fn pattern(position: usize) -> u8 {
    (position.wrapping_mul(2_654_435_761) >> 13) as u8
}

async fn send_records(tls: &mut TlsStream, total: usize) {
    let mut sent = 0;
    poll_fn(|cx| {
        while sent < total {
            ready!(tls.poll_ready(cx)).unwrap();
            let record = tls.record();
            // Every length comes up, full records most often.
            let length = match sent % 5 {
                0 => 1 + sent % record.len(),
                _ => record.len(),
            }
            .min(total - sent);
            for (offset, byte) in record[..length].iter_mut().enumerate() {
                *byte = pattern(sent + offset);
            }
            tls.seal(length).unwrap();
            sent += length;
        }
        tls.poll_flush(cx)
    })
    .await
    .unwrap();
}

async fn receive_records(tls: &mut TlsStream, total: usize) {
    let mut received = 0;
    poll_fn(|cx| {
        while received < total {
            let bytes = ready!(tls.poll_open(cx)).unwrap().unwrap();
            for (offset, byte) in bytes.iter().enumerate() {
                assert_eq!(*byte, pattern(received + offset));
            }
            received += bytes.len();
        }
        Poll::Ready(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_arrive_unchanged_each_way() {
    let (mut client, mut server) = pair(&World::new(), parameters(Ech::Off)).await;
    let sending = tokio::spawn(async move {
        send_records(&mut client, HUNDRED_MEGABYTES).await;
        client
    });
    receive_records(&mut server, HUNDRED_MEGABYTES).await;
    let mut client = sending.await.unwrap();
    let sending = tokio::spawn(async move {
        send_records(&mut server, HUNDRED_MEGABYTES).await;
        server
    });
    receive_records(&mut client, HUNDRED_MEGABYTES).await;
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_at_once_do_not_disturb_each_other() {
    let (client, server) = pair(&World::new(), parameters(Ech::Off)).await;
    let total = 20_000_000;
    let run = |tls: TlsStream| {
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(tls);
            let send = async {
                let bytes: Vec<u8> = (0..total).map(pattern).collect();
                for chunk in bytes.chunks(70_001) {
                    write.write_all(chunk).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            let receive = async {
                let mut bytes = Vec::new();
                read.read_to_end(&mut bytes).await.unwrap();
                assert_eq!(bytes.len(), total);
                assert!(
                    bytes
                        .iter()
                        .enumerate()
                        .all(|(at, byte)| *byte == pattern(at))
                );
            };
            tokio::join!(send, receive);
        })
    };
    let (one, two) = (run(client), run(server));
    one.await.unwrap();
    two.await.unwrap();
}

#[tokio::test]
async fn one_direction_ends_and_the_other_goes_on() {
    let (mut client, mut server) = pair(&World::new(), parameters(Ech::Off)).await;
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "the end stays");
    send_records(&mut server, 1_000_000).await;
    server.shutdown().await.unwrap();
    receive_records(&mut client, 1_000_000).await;
    assert!(
        poll_fn(|cx| client.poll_open(cx).map_ok(|bytes| bytes.is_none()))
            .await
            .unwrap()
    );
    let error = client.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn an_end_without_close_notify_is_an_error() {
    let (mut client, mut server) = pair(&World::new(), parameters(Ech::Off)).await;
    client.write_all(b"cut").await.unwrap();
    client.flush().await.unwrap();
    // Unread bytes, such as tickets, would make it a reset.
    server.write_all(b"ok").await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut [0; 2]).await.unwrap();
    drop(client);
    let mut heard = [0; 3];
    server.read_exact(&mut heard).await.unwrap();
    let error = server.read(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(server.read(&mut heard).await.is_err(), "the error stays");
}

#[tokio::test]
async fn an_altered_byte_ends_the_connection() {
    let world = World::new();
    let target = echo(&world.server).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Passes the handshake on as it is, and alters the first record after it.
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        let (mut from_server, mut to_server) = server.split();
        let (mut from_client, mut to_client) = client.split();
        let up = tokio::io::copy(&mut from_client, &mut to_server);
        let down = async {
            let mut buffer = vec![0; 65536];
            let mut altering = false;
            loop {
                let length = from_server.read(&mut buffer).await.unwrap();
                if length == 0 {
                    return;
                }
                if altering {
                    buffer[length - 1] ^= 1;
                }
                // The first read is the handshake; the tickets come with the second.
                altering = true;
                to_client.write_all(&buffer[..length]).await.unwrap();
            }
        };
        let _ = tokio::join!(up, down);
    });
    let mut tls = dial(address, &world.client, parameters(Ech::Off))
        .await
        .unwrap();
    tls.write_all(b"ping").await.unwrap();
    tls.flush().await.unwrap();
    let error = tls.read(&mut [0; 4]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_small_reader_gets_every_byte_of_a_record() {
    let (mut client, mut server) = pair(&World::new(), parameters(Ech::Off)).await;
    send_records(&mut client, 3 * RECORD_MAX).await;
    let mut bytes = Vec::new();
    let mut piece = [0; 7];
    while bytes.len() < RECORD_MAX {
        let length = server.read(&mut piece).await.unwrap();
        bytes.extend_from_slice(&piece[..length]);
    }
    // What a byte-wise reader left of a record, a record-wise one gets next.
    let rest = poll_fn(|cx| server.poll_open(cx).map_ok(|bytes| bytes.unwrap().to_vec()))
        .await
        .unwrap();
    bytes.extend_from_slice(&rest);
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == pattern(at))
    );
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let (mut client, server) = pair(&World::new(), parameters(Ech::Off)).await;
    let endless = send_records(&mut client, 1 << 30);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), endless)
            .await
            .is_err(),
        "a gigabyte went into buffers"
    );
    drop(server);
}

#[tokio::test]
async fn more_than_a_record_holds_cannot_be_sealed() {
    let (mut client, _server) = pair(&World::new(), parameters(Ech::Off)).await;
    assert_eq!(client.record().len(), RECORD_MAX);
    assert_eq!(
        client.seal(RECORD_MAX + 1).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
    for _ in 0..16 {
        assert_eq!(client.record().len(), RECORD_MAX);
        client.seal(RECORD_MAX).unwrap();
    }
    assert_eq!(client.record().len(), 0, "sixteen are gathered, not more");
    assert!(client.seal(1).is_err());
}

#[tokio::test]
async fn a_second_connection_resumes_and_shows_the_hello_of_one() {
    let world = World::new();
    let recorder = Recorder::before(echo(&world.server).await).await;
    for profile in ech_workers_tls::profile::ALL {
        let parameters = ClientParameters {
            profile,
            session_key: Some(profile.name),
            ..parameters(Ech::Off)
        };
        let mut tls = dial(recorder.address, &world.client, parameters)
            .await
            .unwrap();
        assert!(!tls.info().resumed);
        ping(&mut tls).await;
        let before = recorder.sent().len();
        let mut tls = dial(recorder.address, &world.client, parameters)
            .await
            .unwrap();
        assert!(tls.info().resumed);
        ping(&mut tls).await;
        let hello = ClientHello::from_records(&recorder.sent()[before..])
            .unwrap()
            .unwrap();
        let mut expected: Vec<u16> = profile
            .extensions(parameters.form, false)
            .into_iter()
            .filter(|id| *id != 35)
            .collect();
        expected.push(41);
        assert_eq!(hello.extension_ids(), expected, "{}", profile.name);
    }
}

#[tokio::test]
async fn foreign_sessions_are_not_resumed() {
    let world = World::new();
    let address = echo(&world.server).await;
    let with = |session_key| ClientParameters {
        session_key,
        ..parameters(Ech::Off)
    };
    let resumed = async |session_key| {
        let mut tls = dial(address, &world.client, with(session_key))
            .await
            .unwrap();
        ping(&mut tls).await;
        tls.info().resumed
    };
    assert!(!resumed(Some("one")).await);
    assert!(!resumed(Some("two")).await);
    assert!(!resumed(None).await);
    assert!(resumed(Some("one")).await);
}

#[test]
fn a_connection_goes_on_in_another_runtime_when_its_first_one_has_ended() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let (client, server) = first.block_on(async {
        let (mut client, mut server) = pair(&World::new(), parameters(Ech::Off)).await;
        send_records(&mut client, 1000).await;
        // A part of it is read here, and the rest goes along.
        server.read_exact(&mut [0; 10]).await.unwrap();
        (client, server)
    });
    let mut moved = std::thread::spawn(move || {
        runtime().block_on(async {
            let mut client = client.into_current_runtime().unwrap();
            let mut server = server.into_current_runtime().unwrap();
            first.shutdown_background();
            let mut rest = [0; 990];
            server.read_exact(&mut rest).await.unwrap();
            assert!(
                rest.iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == pattern(10 + at))
            );
            tokio::join!(
                send_records(&mut server, 1_000_000),
                receive_records(&mut client, 1_000_000)
            );
            client
        })
    })
    .join()
    .unwrap();
    // Left in a runtime that has ended, it is of no use.
    let error = runtime().block_on(moved.read(&mut [0; 1])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Other, "{error}");
}
