//! The protocol after the handshake, against BoringSSL and against malice.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use ech_workers_boringssl::pkey::PKey;
use ech_workers_boringssl::ssl::{Ssl, SslContext, SslMethod};
use ech_workers_boringssl::x509::X509;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::authority::{CertificateAuthority, Validity};
use crate::record::{HEADER, OVERHEAD, RECORDS_PER_KEY, content_type};
use crate::{
    ClientContext, ClientParameters, Ech, HelloForm, Profile, ServerContext, Trust, accept, connect,
};

const PARAMETERS: ClientParameters<'static> = ClientParameters {
    profile: &crate::profile::ALL[0],
    form: HelloForm::FirstContact,
    server_name: "server.test",
    ech: Ech::Off,
    without: None,
    session_key: None,
};

fn identity() -> (ClientContext, crate::Identity) {
    let authority = CertificateAuthority::new().unwrap();
    let client = ClientContext::new(&Trust {
        system: false,
        extra_pem: vec![authority.root_pem().unwrap()],
    })
    .unwrap();
    let identity = authority
        .issue(&["server.test"], Validity::days(1))
        .unwrap();
    (client, identity)
}

async fn pair() -> (TlsStream, TlsStream) {
    let (client, identity) = identity();
    let server = ServerContext::new(&[identity]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(
        async {
            let tcp = TcpStream::connect(address).await.unwrap();
            connect(tcp, &client, PARAMETERS).await
        },
        async { accept(listener.accept().await.unwrap().0, &server).await }
    );
    (client.unwrap(), server.unwrap())
}

/// A server that is BoringSSL from end to end, echoing.
async fn with_boringssl() -> TlsStream {
    let (client, identity) = identity();
    let mut server = SslContext::builder(SslMethod::tls_server()).unwrap();
    let certificate = X509::from_pem(&identity.chain_pem).unwrap();
    server.set_certificate(&certificate).unwrap();
    let key = PKey::private_key_from_pem(&identity.key_pem).unwrap();
    server.set_private_key(&key).unwrap();
    let server = server.build();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        let mut tls = SslStream::new(Ssl::new(&server).unwrap(), tcp).unwrap();
        tls.accept().unwrap();
        let mut buffer = [0; 20_000];
        while let Ok(length @ 1..) = tls.read(&mut buffer) {
            tls.write_all(&buffer[..length]).unwrap();
        }
        let _ = tls.shutdown();
    });
    let tcp = TcpStream::connect(address).await.unwrap();
    connect(tcp, &client, PARAMETERS).await.unwrap()
}

async fn ping(tls: &mut TlsStream) -> io::Result<()> {
    tls.write_all(b"ping").await?;
    tls.flush().await?;
    let mut answer = [0; 4];
    tls.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

#[tokio::test]
async fn boringssl_follows_our_key_updates_and_we_follow_its() {
    let mut tls = with_boringssl().await;
    for round in 0..5 {
        ping(&mut tls).await.unwrap();
        if round % 2 == 0 {
            // Ours alone, as after many records.
            tls.writer.key_update = true;
        } else {
            // One that asks BoringSSL for its own, which comes before its next data.
            tls.writer
                .seal_control(content_type::HANDSHAKE, &[24, 0, 0, 1, 1])
                .unwrap();
            tls.writer.key.update().unwrap();
        }
        let read = tls.reader.key.sequence();
        ping(&mut tls).await.unwrap();
        assert_eq!(tls.writer.key.sequence(), 1, "a new key");
        assert_eq!(tls.reader.key.sequence() < read, round % 2 == 1);
    }
}

#[tokio::test]
async fn a_requested_key_update_comes_before_the_next_data() {
    let (mut client, mut server) = pair().await;
    client
        .writer
        .seal_control(content_type::HANDSHAKE, &[24, 0, 0, 1, 1])
        .unwrap();
    client.writer.key.update().unwrap();
    client.write_all(b"x").await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    assert!(server.writer.key_update);
    server.write_all(b"y").await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut [0; 1]).await.unwrap();
    assert_eq!(client.reader.key.sequence(), 1);
    assert!(!client.writer.key_update, "an answer asks for none");
}

#[tokio::test]
async fn plaintext_that_a_flush_took_away_is_not_sealed() {
    let (mut client, mut server) = pair().await;
    client.record()[..4].copy_from_slice(b"lost");
    assert_eq!(&client.unsealed()[..4], b"lost");
    client.flush().await.unwrap();
    assert!(client.unsealed().is_empty());
    assert_eq!(
        client.seal(4).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );

    client.record()[..4].copy_from_slice(b"kept");
    client.seal(4).unwrap();
    assert!(client.seal(4).is_err(), "sealed once");
    client.flush().await.unwrap();
    let mut received = [0; 4];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"kept");
}

#[tokio::test]
async fn a_key_update_that_takes_the_last_room_loses_nothing() {
    for before in 14..=16 {
        let (mut client, mut server) = pair().await;
        for _ in 0..before {
            client.record().fill(1);
            client.seal(RECORD_MAX).unwrap();
        }
        client.writer.key_update = true;
        let sending = async {
            std::future::poll_fn(|cx| client.poll_ready(cx))
                .await
                .unwrap();
            assert!(!client.writer.key_update);
            client.record().fill(1);
            client.seal(RECORD_MAX).unwrap();
            client.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, length) = tokio::join!(sending, server.read_to_end(&mut received));
        assert_eq!(length.unwrap(), (before + 1) * RECORD_MAX);
        assert!(received.iter().all(|byte| *byte == 1));
    }
}

#[tokio::test]
async fn a_key_is_replaced_before_it_is_worn_out() {
    let (mut client, mut server) = pair().await;
    // As if that many records had gone by.
    let (sequence, read) = (RECORDS_PER_KEY - 1, &mut server.reader.key);
    client.writer.key.skip_to(sequence);
    read.skip_to(sequence);
    for _ in 0..3 {
        client.write_all(b"x").await.unwrap();
        client.flush().await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
    }
    assert_eq!(client.writer.key.sequence(), 2);
    assert_eq!(server.reader.key.sequence(), 2);
}

async fn answer_to(kind: u8, content: &[u8], times: usize) -> io::Result<usize> {
    let (mut client, mut server) = pair().await;
    for _ in 0..times {
        client.writer.seal_control(kind, content).unwrap();
        client.flush().await.unwrap();
    }
    // Data after it, so that what is passed over ends.
    let _ = client.write_all(b"x").await;
    let _ = client.flush().await;
    server.read(&mut [0; 1]).await
}

/// Sends a record whose inner plaintext is `content`, `kind` and `padding` zeros.
async fn send_padded(tls: &mut TlsStream, kind: u8, content: &[u8], padding: usize) {
    let mut record = vec![0; HEADER];
    record.extend_from_slice(content);
    record.push(kind);
    record.resize(record.len() + padding, 0);
    let length = record.len() - HEADER - 1;
    let last = record.pop().unwrap();
    record.resize(HEADER + length + OVERHEAD, 0);
    let sealed = tls.writer.key.seal(&mut record, length, last).unwrap();
    tls.tcp.write_all(&record[..sealed]).await.unwrap();
}

/// What the client hears when it has sent these records, of a type, a content and a padding each: the server's alert, or
/// that the server took them.
async fn heard_after(records: &[(u8, &[u8], usize)]) -> String {
    let (mut client, mut server) = pair().await;
    for (kind, content, padding) in records {
        send_padded(&mut client, *kind, content, *padding).await;
    }
    client.shutdown().await.unwrap();
    match server.read_to_end(&mut Vec::new()).await {
        Ok(_) => "nothing".to_owned(),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let error = client.read_to_end(&mut Vec::new()).await.unwrap_err();
            let error = error.to_string();
            let (_, alert) = error
                .split_once("the peer ended the connection: ")
                .unwrap_or_else(|| panic!("{error}"));
            alert.split(' ').next().unwrap().to_owned()
        }
    }
}

#[tokio::test]
async fn what_breaks_rfc_8446_gets_the_alert_that_it_asks_for() {
    use content_type::{ALERT, APPLICATION_DATA, HANDSHAKE};
    let long = [7; RECORD_MAX + 1];
    for (records, alert) in [
        // Section 4.6.3.
        (
            &[(HANDSHAKE, &[24, 0, 0, 1, 2][..], 0)][..],
            "illegal_parameter",
        ),
        (&[(HANDSHAKE, &[24, 0, 0, 2, 0, 0], 0)], "decode_error"),
        (&[(HANDSHAKE, &[24, 0, 0, 0], 0)], "decode_error"),
        // Section 5.1: a key update ends its record, and nothing comes between the parts of a message.
        (
            &[(HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], 0)],
            "unexpected_message",
        ),
        (
            &[(HANDSHAKE, &[24, 0], 0), (APPLICATION_DATA, b"x", 0)],
            "unexpected_message",
        ),
        (
            &[(HANDSHAKE, &[24, 0], 0), (APPLICATION_DATA, b"", 0)],
            "unexpected_message",
        ),
        (
            &[(HANDSHAKE, &[24, 0], 0), (ALERT, &[1, 90], 0)],
            "unexpected_message",
        ),
        // Messages that only a handshake has, and a ticket for the server.
        (&[(HANDSHAKE, &[1, 0, 0, 0], 0)], "unexpected_message"),
        (&[(HANDSHAKE, &[13, 0, 0, 0], 0)], "unexpected_message"),
        (&[(HANDSHAKE, &[4, 0, 0, 14], 0)], "unexpected_message"),
        // Section 5: types that do not exist here. Section 5.4: handshake messages and alerts are not empty.
        (&[(20, &[1], 0)], "unexpected_message"),
        (&[(0, &[], 0)], "unexpected_message"),
        (&[(0, &[], 100)], "unexpected_message"),
        (&[(HANDSHAKE, &[], 0)], "unexpected_message"),
        (&[(HANDSHAKE, &[], 10)], "unexpected_message"),
        (&[(ALERT, &[], 0)], "unexpected_message"),
        // Section 6: an alert is two bytes long.
        (&[(ALERT, &[1], 0)], "decode_error"),
        (&[(ALERT, &[1, 90, 1, 90], 0)], "decode_error"),
        // Section 5.4: the inner plaintext is at most 2^14 + 1 bytes long, with its type and its padding.
        (&[(APPLICATION_DATA, &long[1..], 0)], "nothing"),
        (&[(APPLICATION_DATA, b"x", RECORD_MAX - 1)], "nothing"),
        (&[(APPLICATION_DATA, b"", RECORD_MAX)], "nothing"),
        (&[(APPLICATION_DATA, &long, 0)], "record_overflow"),
        (&[(APPLICATION_DATA, &long[1..], 1)], "record_overflow"),
        (&[(APPLICATION_DATA, b"x", RECORD_MAX)], "record_overflow"),
        (&[(0, &[], RECORD_MAX + 1)], "record_overflow"),
    ] {
        let heard = heard_after(records).await;
        let shown: Vec<_> = records
            .iter()
            .map(|(kind, content, padding)| (kind, &content[..content.len().min(10)], padding))
            .collect();
        assert_eq!(heard, alert, "{shown:?}");
    }
}

#[tokio::test]
async fn a_key_update_in_five_records_is_followed() {
    let (mut client, mut server) = pair().await;
    for byte in [24, 0, 0, 1, 1] {
        send_padded(&mut client, content_type::HANDSHAKE, &[byte], 0).await;
    }
    client.writer.key.update().unwrap();
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut received = [0; 4];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"ping");
    assert_eq!(server.reader.key.sequence(), 1);
    assert!(server.writer.key_update, "it asked for one");
}

#[tokio::test]
async fn a_ticket_in_many_records_is_passed_over() {
    let (mut client, mut server) = pair().await;
    let mut ticket = vec![4, 0, 0, 200];
    ticket.resize(204, 1);
    for part in ticket.chunks(1) {
        send_padded(&mut server, content_type::HANDSHAKE, part, 0).await;
    }
    server.write_all(b"data").await.unwrap();
    server.flush().await.unwrap();
    let mut received = [0; 4];
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"data");
}

#[tokio::test]
async fn an_alert_is_named() {
    let error = answer_to(content_type::ALERT, &[2, 80], 1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(error.to_string().contains("internal_error"), "{error}");
    let user_canceled = answer_to(content_type::ALERT, &[1, 90], 1).await;
    assert_eq!(user_canceled.unwrap(), 1);
}

#[tokio::test]
async fn any_number_of_empty_records_is_passed_over() {
    let (mut client, mut server) = pair().await;
    let sending = async {
        for padding in 0..1000 {
            send_padded(&mut client, content_type::APPLICATION_DATA, &[], padding).await;
        }
        client.write_all(b"ping").await.unwrap();
        client.flush().await.unwrap();
    };
    let mut received = [0; 4];
    let (result, ()) = tokio::join!(server.read_exact(&mut received), sending);
    result.unwrap();
    assert_eq!(&received, b"ping");
}

#[tokio::test]
async fn a_flood_of_empty_records_leaves_the_thread_to_others() {
    let (mut client, mut server) = pair().await;
    for _ in 0..1000 {
        send_padded(&mut client, content_type::APPLICATION_DATA, &[], 0).await;
    }
    send_padded(&mut client, content_type::APPLICATION_DATA, b"x", 0).await;
    server.tcp.readable().await.unwrap();
    let opened = |server: &TlsStream| server.reader.key.sequence();
    let before = opened(&server);
    let mut calls = 0;
    let mut batch = Vec::new();
    let woken = waker();
    loop {
        calls += 1;
        let at = opened(&server);
        let polled = server.poll_open_batch(&mut Context::from_waker(&woken.1), &mut batch);
        let ready = matches!(polled, Poll::Ready(Ok(Some(_))));
        assert!(opened(&server) - at <= 1 + IDLE_RECORDS as u64);
        if ready {
            break;
        }
        let again = woken.0.0.swap(false, Ordering::Relaxed);
        let limited = opened(&server) - at == IDLE_RECORDS as u64;
        assert!(again || !limited, "left without a wake-up");
        tokio::task::yield_now().await;
    }
    assert!(calls > 1000 / IDLE_RECORDS, "{calls}");
    assert_eq!(opened(&server) - before, 1001);
}

#[tokio::test]
async fn a_flood_of_key_updates_or_warnings_ends_the_connection() {
    for (kind, content) in [
        (content_type::HANDSHAKE, &[24, 0, 0, 1, 0][..]),
        (content_type::ALERT, &[1, 90]),
    ] {
        for (times, data, ends) in [(60, false, false), (200, true, false), (100, false, true)] {
            let (mut client, mut server) = pair().await;
            for _ in 0..times {
                client.writer.seal_control(kind, content).unwrap();
                if kind == content_type::HANDSHAKE {
                    client.writer.key.update().unwrap();
                }
                if data {
                    client.write_all(b"x").await.unwrap();
                }
                client.flush().await.unwrap();
            }
            client.shutdown().await.unwrap();
            let result = server.read_to_end(&mut Vec::new()).await;
            assert_eq!(result.is_err(), ends, "{kind}, {times} times");
        }
    }
}

/// A waker and whether it was woken.
fn waker() -> (Arc<Woken>, Waker) {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    (Arc::clone(&woken), Waker::from(woken))
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn shorter_records_are_sent_to_a_peer_that_asked_for_them() {
    let (mut client, mut server) = pair().await;
    client.writer.limit_plaintext(1000);
    assert_eq!(client.record().len(), 1000);
    assert!(client.seal(1001).is_err());
    client.write_all(&[5; 2500]).await.unwrap();
    client.flush().await.unwrap();
    let mut lengths = Vec::new();
    while lengths.iter().sum::<usize>() < 2500 {
        let length = std::future::poll_fn(|cx| {
            server
                .poll_open(cx)
                .map_ok(|bytes| bytes.map_or(0, |bytes| bytes.len()))
        });
        lengths.push(length.await.unwrap());
    }
    assert_eq!(lengths, [1000, 1000, 500]);
}

#[tokio::test]
async fn a_stream_with_nothing_in_it_holds_no_buffer() {
    let (mut client, mut server) = pair().await;
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut client, &mut server];
        let bytes = [3; 40_000];
        ends[from].write_all(&bytes).await.unwrap();
        assert!(ends[from].writer.holds_buffer());
        ends[from].flush().await.unwrap();
        assert!(!ends[from].writer.holds_buffer());
        ends[to].read_exact(&mut [0; 40_000]).await.unwrap();
        assert!(!ends[to].reader.holds_buffer());
    }
    assert_eq!(Profile::standard(), PARAMETERS.profile);
}
