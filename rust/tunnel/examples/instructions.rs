//! Fixed pieces of work whose instructions are counted: `instructions PIECE AMOUNT` under `valgrind --tool=callgrind`.
//!
//! What one more of a piece costs is the difference between two amounts, so that the start, the handshake and the
//! certificates do not count. See tests/regression/test_instructions.py.

#![allow(clippy::unwrap_used)] // what fails here is the machine, or our own frames

use std::future::poll_fn;
use std::hint::black_box;
use std::io::{Read, Write};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use ech_workers_proxy::{Negotiation, Progress};
use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tls::ech::{EchKey, config_list};
use ech_workers_tls::{
    ClientContext, ClientParameters, Ech, HelloForm, Profile, ServerContext, Trust, accept, connect,
};
use ech_workers_tunnel::{
    Client, ClientConfig, ClientLimits, DialPlan, Event, FaceConfig, Mode, Next, Server,
    ServerConfig, ServerLimits,
};
use ech_workers_websocket::{self as websocket, Decoder, OpCode, Role};
use ech_workers_yamux::{self as yamux, Connection, HEADER_LEN, Side};
use tracing::level_filters::LevelFilter;

const MEBIBYTE: usize = 1 << 20;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let amount = words.get(1).and_then(|word| word.parse().ok());
    match (words.first().map(String::as_str), amount) {
        (Some("framing-up"), Some(mebibytes)) => framing(Role::Client, mebibytes),
        (Some("framing-down"), Some(mebibytes)) => framing(Role::Server, mebibytes),
        (Some("records"), Some(mebibytes)) => records(mebibytes),
        (Some("negotiations"), Some(count)) => negotiations(count),
        (Some("tunnel-down"), Some(mebibytes)) => tunnel(mebibytes, false),
        (Some("tunnel-up"), Some(mebibytes)) => tunnel(mebibytes, true),
        _ => {
            eprintln!(
                "usage: instructions framing-up|framing-down|records|negotiations|tunnel-down|tunnel-up AMOUNT"
            );
            std::process::exit(2);
        }
    }
}

/// One side frames records' worth of payload, yamux in WebSocket messages; the other takes them apart.
fn framing(sender: Role, mebibytes: usize) {
    let (receiver, key, side) = match sender {
        Role::Client => (Role::Server, Some([0x5a, 0x17, 0xc3, 0x2e]), Side::Client),
        Role::Server => (Role::Client, None, Side::Server),
    };
    let now = Instant::now();
    let mut client = Connection::new(Side::Client, yamux::Config::default(), now);
    let mut server = Connection::new(Side::Server, yamux::Config::default(), now);
    let stream = client.open().unwrap();
    exchange(&mut client, &mut server, now);
    let (mut from, mut to) = match side {
        Side::Client => (client, server),
        Side::Server => (server, client),
    };
    let mut decoder = Decoder::new(receiver);
    let mut record = vec![7; 16_384];
    let header = websocket::header_len(sender, record.len() - 8);
    let message = record.len() - header;
    let payload = message - HEADER_LEN;
    for _ in 0..(mebibytes * MEBIBYTE).div_ceil(payload) {
        if from.send_window(stream) < payload {
            exchange(&mut from, &mut to, now);
        }
        record[header..header + HEADER_LEN].copy_from_slice(&from.data_header(stream, payload));
        websocket::encode_header(&mut record, OpCode::Binary, true, message, key);
        if let Some(key) = key {
            websocket::mask(&mut record[header..], key, 0);
        }
        let mut at = 0;
        while at < record.len() {
            let (used, event) = decoder.decode(&mut record[at..]).unwrap();
            if let Some(websocket::Event::Data { range, .. }) = event {
                absorb(&mut to, &record[at + range.start..at + range.end], now);
            }
            at += used;
        }
    }
}

fn absorb(mux: &mut Connection, mut bytes: &[u8], now: Instant) {
    while !bytes.is_empty() {
        let (used, event) = mux.receive(bytes, now).unwrap();
        if let Some(yamux::Event::Data { stream, range }) = event {
            mux.consumed(stream, black_box(range).len(), now);
        }
        bytes = &bytes[used..];
    }
}

/// Control frames both ways until neither side has more to say.
fn exchange(a: &mut Connection, b: &mut Connection, now: Instant) {
    while a.has_control() || b.has_control() {
        while let Some(header) = a.poll_control(now) {
            b.receive(&header, now).unwrap();
        }
        while let Some(header) = b.poll_control(now) {
            a.receive(&header, now).unwrap();
        }
    }
}

/// Records sealed by a client and opened by a server, over loopback, by turns in one thread.
fn records(mebibytes: usize) {
    let authority = CertificateAuthority::new().unwrap();
    let context = ClientContext::new(&trust(&authority)).unwrap();
    let server =
        ServerContext::new(&[authority.issue(&["bench.test"], Validity::days(1)).unwrap()])
            .unwrap();
    let parameters = ClientParameters {
        profile: Profile::standard(),
        form: HelloForm::WebSocket,
        server_name: "bench.test",
        ech: Ech::Off,
        session_key: None,
        without: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (mut sealing, mut opening) = tokio::join!(
            async { connect(tcp, &context, parameters).await.unwrap() },
            async { accept(accepted, &server).await.unwrap() },
        );
        let total = mebibytes * MEBIBYTE;
        let mut sent = 0;
        let mut received = 0;
        let send = poll_fn(|cx| {
            while sent < total {
                ready!(sealing.poll_ready(cx)).unwrap();
                let length = sealing.record().len();
                sealing.seal(length).unwrap();
                sent += length;
            }
            ready!(sealing.poll_flush(cx)).unwrap();
            Poll::Ready(())
        });
        let receive = poll_fn(|cx| {
            while received < total {
                received += ready!(opening.poll_open(cx)).unwrap().unwrap().len();
            }
            Poll::Ready(())
        });
        tokio::join!(send, receive);
    });
}

/// A SOCKS5 and an HTTP CONNECT negotiation, `count` times.
fn negotiations(count: usize) {
    let socks: &[&[u8]] = &[b"\x05\x01\x00", b"\x05\x01\x00\x03\x0bexample.org\x01\xbb"];
    let http: &[&[u8]] = &[
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\nUser-Agent: curl/8.14\r\nProxy-Connection: Keep-Alive\r\n\r\n",
    ];
    for _ in 0..count {
        for pieces in [socks, http] {
            let mut negotiation = Negotiation::new(None);
            let mut last = Progress::NeedMore;
            for piece in pieces {
                last = negotiation.advance(piece);
                while let Progress::Send(reply) = last {
                    black_box(reply);
                    last = negotiation.advance(&[]);
                }
            }
            let Progress::Request(request) = last else {
                unreachable!("both are whole requests: {last:?}");
            };
            black_box(request.success());
        }
    }
}

/// One stream through a client and a server with TLS, ECH, WebSocket and yamux, each in threads of its own as in use.
fn tunnel(mebibytes: usize, up: bool) {
    let authority = CertificateAuthority::new().unwrap();
    let identities = ["public.test", "hidden.test"]
        .map(|name| authority.issue(&[name], Validity::days(1)).unwrap());
    let tls = ServerContext::new(&identities).unwrap();
    let key = EchKey::generate(1, "public.test", 64).unwrap();
    tls.set_ech_keys(std::slice::from_ref(&key)).unwrap();
    let server = Server::new("127.0.0.1", 0, server_config(), tls).unwrap();
    let client = Client::new(
        client_config(),
        ClientContext::new(&trust(&authority)).unwrap(),
    )
    .unwrap();
    let plan = DialPlan {
        upstream: 0,
        server_name: "hidden.test".to_owned(),
        port: server.address().port(),
        authority_port: None,
        path: "/".to_owned(),
        token: Some("token".to_owned()),
        addresses: vec![server.address().ip()],
        ech: Some(config_list(&[key])),
        profile: Profile::standard(),
        websocket_hello: true,
        mode: Mode::Yamux,
        tcp_timeout: LIMIT,
        handshake_timeout: LIMIT,
    };
    client.dial(plan);
    loop {
        match client.events().next(Some(LIMIT)) {
            Next::Event(Event::SessionUp { .. }) => break,
            Next::TimedOut | Next::Closed => unreachable!("no session over loopback"),
            _ => {}
        }
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string().parse().unwrap();
    let pending = client.open(&target, None, None);
    assert!(pending.wait(Duration::from_secs(60)));
    let (socket, _) = pending.take().unwrap().unwrap().into_parts().unwrap();
    let mut local = std::os::unix::net::UnixStream::from(socket);
    local.set_nonblocking(false).unwrap();
    let (mut remote, _) = listener.accept().unwrap();
    let (from, to): (&mut dyn Write, &mut dyn Read) = if up {
        (&mut local, &mut remote)
    } else {
        (&mut remote, &mut local)
    };
    // As much as any socket takes at once, and the next when it has arrived: the same is under way in every run.
    let mut chunk = vec![7; 64 << 10];
    for _ in 0..mebibytes * MEBIBYTE / chunk.len() {
        from.write_all(&chunk).unwrap();
        to.read_exact(&mut chunk).unwrap();
    }
}

const LIMIT: Duration = Duration::from_secs(60);

fn trust(authority: &CertificateAuthority) -> Trust {
    Trust {
        system: false,
        extra_pem: vec![authority.root_pem().unwrap()],
    }
}

fn server_config() -> ServerConfig {
    ServerConfig {
        face: FaceConfig {
            path: "/".to_owned(),
            tokens: vec![("token".to_owned(), "ours".to_owned())],
            decoy: None,
            healthz: false,
        },
        limits: ServerLimits {
            max_sessions: 4,
            memory_limit: 256 << 20,
            max_streams: 4,
            allow_private_targets: true,
            connect_timeout: LIMIT,
            idle_timeout: LIMIT,
        },
        workers: 1,
        log_level: LevelFilter::INFO,
    }
}

fn client_config() -> ClientConfig {
    ClientConfig {
        limits: ClientLimits {
            max_connections: 4,
            open_timeout: LIMIT,
            idle_timeout: LIMIT,
            memory_limit: 64 << 20,
            confirmed: false,
        },
        local_handshake_timeout: LIMIT,
        half_closed_timeout: LIMIT,
        ping_interval: LIMIT,
        ping_timeout: LIMIT,
        receive_window_max: 16 << 20,
        workers: 1,
        log_level: LevelFilter::INFO,
    }
}
