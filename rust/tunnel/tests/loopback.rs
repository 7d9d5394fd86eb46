//! Client and server joined over loopback, with real TLS and real ECH, and real targets behind them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helper functions too"
)]

mod site;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ech_workers_proxy::Target;
use ech_workers_tls::ServerContext;
use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tls::ech::{EchKey, config_list};
use ech_workers_tunnel::{
    Client, Code, DialPlan, Ended, Ending, Event, FaceConfig, Failure, Learned, Mode, Next, Server,
    ServerConfig, ServerLimits, Stream, StreamEnded,
};
use tracing::level_filters::LevelFilter;

const TOKEN: &str = "a-token-of-this-test";
const LIMIT: Duration = Duration::from_secs(20);

/// A server, and what a client needs to know about it.
struct Site {
    server: Server,
    authority: CertificateAuthority,
    key: EchKey,
}

impl Site {
    fn new() -> Self {
        let authority = CertificateAuthority::new().unwrap();
        let identities = [
            authority
                .issue(&["public.test"], Validity::days(1))
                .unwrap(),
            authority
                .issue(&["hidden.test"], Validity::days(1))
                .unwrap(),
        ];
        let tls = ServerContext::new(&identities).unwrap();
        let key = EchKey::generate(1, "public.test", 64).unwrap();
        tls.set_ech_keys(std::slice::from_ref(&key)).unwrap();
        let config = ServerConfig {
            face: FaceConfig {
                path: "/ws".to_owned(),
                tokens: vec![
                    ("another-token".to_owned(), "another".to_owned()),
                    (TOKEN.to_owned(), "ours".to_owned()),
                ],
                decoy: None,
                healthz: false,
            },
            limits: ServerLimits {
                max_sessions: 64,
                memory_limit: 256 << 20,
                max_streams: 256,
                allow_private_targets: true,
                connect_timeout: Duration::from_secs(5),
                idle_timeout: Duration::from_secs(60),
            },
            workers: 1,
            log_level: LevelFilter::DEBUG,
        };
        Self {
            server: Server::new("127.0.0.1", 0, config, tls).unwrap(),
            authority,
            key,
        }
    }

    fn plan(&self, mode: Mode) -> DialPlan {
        DialPlan {
            upstream: 0,
            token: Some(TOKEN.to_owned()),
            ech: Some(config_list(std::slice::from_ref(&self.key))),
            mode,
            ..site::plan(self.server.address())
        }
    }

    fn client(&self) -> Client {
        site::client(&self.authority)
    }

    /// A client with one session, or ready for simple mode.
    fn joined(&self, mode: Mode) -> Client {
        let client = self.client();
        client.set_plan(0, Some(self.plan(mode)));
        client.dial(self.plan(mode));
        wait(&client, |event| match event {
            Event::SessionUp { dialed, .. } => {
                assert!(dialed.ech_accepted);
                assert_eq!(dialed.public_name.as_deref(), Some("public.test"));
                true
            }
            Event::DialFailed { failure, .. } => panic!("{failure}"),
            _ => false,
        });
        client
    }
}

/// Waits for the event that `wanted` recognises.
fn wait(client: &Client, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    let deadline = Instant::now() + LIMIT;
    loop {
        match client
            .events()
            .next(Some(deadline.saturating_duration_since(Instant::now())))
        {
            Next::Event(event) if wanted(&event) => return event,
            Next::Event(_) | Next::Log(_) | Next::Woken => {}
            Next::TimedOut => panic!("the event did not come"),
            Next::Closed => panic!("the client ended"),
        }
    }
}

/// Starts a target that hands every connection to `serve`.
fn target(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(connection));
        }
    });
    address.to_string().parse().unwrap()
}

/// A relay in front of a server, whose connections can be cut.
struct Relay {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(server: SocketAddr) -> Self {
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let held = Arc::clone(&connections);
        let relay = target(move |client| {
            let server = TcpStream::connect(server).unwrap();
            let ends = [&client, &server].map(|end| end.try_clone().unwrap());
            held.lock().unwrap().extend(ends);
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        });
        Self {
            address: relay.authority().parse().unwrap(),
            connections,
        }
    }

    fn cut(&self) {
        for end in self.connections.lock().unwrap().drain(..) {
            // One end may be gone already because the other was cut.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Opens a stream and waits for what comes of it.
fn opened(client: &Client, target: &Target, limit: Option<Duration>) -> Result<Stream, Failure> {
    let pending = client.open(target, limit, None);
    assert!(pending.wait(LIMIT));
    pending.take().unwrap()
}

fn open(client: &Client, target: &Target) -> UnixStream {
    open_with_end(client, target).0
}

fn open_with_end(client: &Client, target: &Target) -> (UnixStream, Arc<Ending>) {
    let (socket, ending) = opened(client, target, None).unwrap().into_parts().unwrap();
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    (stream, ending)
}

/// Bytes that tell where they stand, so that a loss or a swap shows.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}

fn echo(mut connection: TcpStream) {
    let mut copy = connection.try_clone().unwrap();
    let _ = std::io::copy(&mut connection, &mut copy);
    let _ = copy.shutdown(Shutdown::Write);
}

#[test]
fn streams_of_yamux_mode_share_a_session_and_each_of_simple_mode_has_its_own() {
    for (mode, sessions) in [(Mode::Yamux, 1), (Mode::Simple, 3)] {
        let site = Site::new();
        let client = site.joined(mode);
        let target = target(echo);
        let mut streams = [(); 3].map(|()| open(&client, &target));
        for stream in &mut streams {
            stream.write_all(b"there and back").unwrap();
            let mut answer = [0; 14];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"there and back");
        }
        assert_eq!(site.server.stats().sessions_total.value(), sessions);
    }
}

#[test]
fn what_goes_in_comes_out_on_many_streams_at_a_time() {
    let site = Site::new();
    let client = Arc::new(site.joined(Mode::Yamux));
    let echo = target(echo);
    let streams: Vec<_> = (0..40_usize)
        .map(|number| {
            let (client, echo) = (Arc::clone(&client), echo.clone());
            thread::spawn(move || {
                let sent = pattern(
                    number as u64 * 77 + 5,
                    (number * number * 1000) % 900_000 + 1,
                );
                let mut stream = open(&client, &echo);
                let mut writer = stream.try_clone().unwrap();
                let bytes = sent.clone();
                let writing = thread::spawn(move || {
                    writer.write_all(&bytes).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                writing.join().unwrap();
                assert!(
                    received == sent,
                    "stream {number}: {} of {} bytes, or others",
                    received.len(),
                    sent.len()
                );
            })
        })
        .collect();
    for stream in streams {
        stream.join().unwrap();
    }
    let total: u64 = (0..40_u64)
        .map(|number| (number * number * 1000) % 900_000 + 1)
        .sum();
    // The counters follow at the end of the driver's turn.
    let deadline = Instant::now() + LIMIT;
    loop {
        let snapshot = client.snapshot();
        assert_eq!(snapshot.sessions.len(), 1);
        if (snapshot.bytes_up, snapshot.bytes_down) == (total, total) {
            break;
        }
        assert!(Instant::now() < deadline, "{snapshot:?}, not {total}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_answer_that_comes_after_the_end_of_the_request_arrives() {
    let site = Site::new();
    let client = site.joined(Mode::Yamux);
    let counter = target(|mut connection| {
        let mut request = Vec::new();
        connection.read_to_end(&mut request).unwrap();
        write!(connection, "{} bytes", request.len()).unwrap();
    });
    let mut stream = open(&client, &counter);
    stream.write_all(&pattern(3, 300_000)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "300000 bytes");
}

#[test]
fn a_program_that_resets_its_upload_does_not_end_it_cleanly() {
    let site = Site::new();
    let client = site.joined(Mode::Yamux);
    let (ended, ends) = std::sync::mpsc::sync_channel(1);
    let sink = target(move |mut connection| {
        let outcome = std::io::copy(&mut connection, &mut std::io::sink());
        ended.send(outcome.is_err()).unwrap();
    });
    let port = client.listen("127.0.0.1", 0, None).unwrap().address();
    for round in 0..60 {
        let mut program = TcpStream::connect(port).unwrap();
        program.set_read_timeout(Some(LIMIT)).unwrap();
        write!(program, "CONNECT {sink} HTTP/1.1\r\nHost: {sink}\r\n\r\n").unwrap();
        let mut reply = [0; 12];
        program.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"HTTP/1.1 200");
        // A whole record first, then several at a time.
        program.write_all(&[1; 16_364]).unwrap();
        program.write_all(&[2; 65_456]).unwrap();
        socket2::SockRef::from(&program)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(program);
        assert!(
            ends.recv_timeout(LIMIT).unwrap(),
            "round {round}: the target saw a clean end"
        );
    }
}

#[test]
fn simple_mode_carries_both_ways_and_ends_with_the_target() {
    let site = Site::new();
    let client = site.joined(Mode::Simple);
    let greeter = target(|mut connection| {
        let mut name = [0; 5];
        connection.read_exact(&mut name).unwrap();
        connection.write_all(b"hello ").unwrap();
        connection.write_all(&name).unwrap();
    });
    // The first goes over the warm connection, the others over their own. CLOSE is a control word only as a text.
    for name in ["world", "CLOSE", "third"] {
        let mut stream = open(&client, &greeter);
        stream.write_all(name.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("hello {name}"));
    }
}

#[test]
fn a_target_that_cannot_be_reached_is_told_with_its_reason() {
    let site = Site::new();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
        .parse()
        .unwrap();
    for mode in [Mode::Yamux, Mode::Simple] {
        let client = site.joined(mode);
        let failure = opened(&client, &closed, None).unwrap_err();
        assert_eq!(failure.code, Code::TargetRefused);
        assert!(failure.message.contains("connection refused"), "{failure}");
        // It is counted by another thread than the one that has told it.
        let deadline = Instant::now() + LIMIT;
        while client.snapshot().targets_failed == 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let snapshot = client.snapshot();
        assert_eq!(snapshot.targets_failed, 1);
        assert_eq!(snapshot.last_target_failure, Some(failure.message));
    }
}

#[test]
fn a_reader_that_stops_holds_up_nobody_else() {
    let site = Site::new();
    let client = site.joined(Mode::Yamux);
    let endless = target(|mut connection| while connection.write_all(&[7; 65536]).is_ok() {});
    let echo = target(echo);
    let mut stalled = open(&client, &endless);
    let mut first = [0; 1000];
    stalled.read_exact(&mut first).unwrap();
    for round in 0..50_u64 {
        let mut stream = open(&client, &echo);
        let sent = pattern(round, 10_000);
        stream.write_all(&sent).unwrap();
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).unwrap();
        assert!(received == sent);
    }
}

#[test]
fn bulk_streams_share_a_session_evenly_while_chatty_ones_go_on() {
    const BULK: usize = 4;
    const CHATTY: u64 = 24;
    let site = Site::new();
    let client = Arc::new(site.joined(Mode::Yamux));
    let endless = target(|mut connection| while connection.write_all(&[7; 65536]).is_ok() {});
    let echo = target(echo);
    let arrived: Arc<[AtomicUsize; BULK]> = Arc::default();
    let ended = Arc::new(AtomicBool::new(false));
    let downloads: Vec<_> = (0..BULK)
        .map(|number| {
            let mut stream = open(&client, &endless);
            let (arrived, ended) = (Arc::clone(&arrived), Arc::clone(&ended));
            thread::spawn(move || {
                let mut buffer = vec![0; 65536];
                while !ended.load(Ordering::Relaxed) {
                    let n = stream.read(&mut buffer).unwrap();
                    arrived[number].fetch_add(n, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let chats: Vec<_> = (0..CHATTY)
        .map(|number| {
            let (client, echo) = (Arc::clone(&client), echo.clone());
            thread::spawn(move || {
                let mut stream = open(&client, &echo);
                for round in 0..100 {
                    let sent = pattern(number * 1000 + round, 500);
                    stream.write_all(&sent).unwrap();
                    let mut received = vec![0; sent.len()];
                    stream.read_exact(&mut received).unwrap();
                    assert!(received == sent);
                }
            })
        })
        .collect();
    for chat in chats {
        chat.join().unwrap();
    }
    // Until every download has had far more than buffers hold: a share, not a rate, is what is judged.
    let deadline = Instant::now() + LIMIT;
    let shares = loop {
        let shares: Vec<_> = arrived
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .collect();
        if shares.iter().sum::<usize>() > BULK * (32 << 20) {
            break shares;
        }
        assert!(Instant::now() < deadline, "{shares:?}");
        thread::sleep(Duration::from_millis(5));
    };
    ended.store(true, Ordering::Relaxed);
    for download in downloads {
        download.join().unwrap();
    }
    let (least, most) = (*shares.iter().min().unwrap(), *shares.iter().max().unwrap());
    assert!(least * 4 > most, "{shares:?}");
}

#[test]
fn a_stale_configuration_is_replaced_within_the_dial_and_the_new_one_reported() {
    let site = Site::new();
    let client = site.client();
    let stale = EchKey::generate(9, "public.test", 64).unwrap();
    let mut plan = site.plan(Mode::Yamux);
    plan.ech = Some(config_list(&[stale]));
    client.dial(plan);
    let current = config_list(std::slice::from_ref(&site.key));
    let learned = wait(&client, |event| matches!(event, Event::Learned { .. }));
    assert!(
        matches!(learned, Event::Learned { what: Learned::Ech(configs), .. } if configs == current)
    );
    let up = wait(&client, |event| matches!(event, Event::SessionUp { .. }));
    assert!(matches!(up, Event::SessionUp { dialed, .. } if dialed.retried && dialed.ech_accepted));
    assert_eq!(client.snapshot().ech_retries, 1);
}

#[test]
fn a_wrong_token_and_a_wrong_path_see_a_decoy() {
    let site = Site::new();
    let client = site.client();
    for (token, path) in [("wrong", "/ws"), (TOKEN, "/other")] {
        let mut plan = site.plan(Mode::Yamux);
        plan.token = Some(token.to_owned());
        plan.path = path.to_owned();
        client.dial(plan);
        let failed = wait(&client, |event| matches!(event, Event::DialFailed { .. }));
        assert!(
            matches!(failed, Event::DialFailed { failure, .. } if failure.code == Code::TokenRejected)
        );
    }
    assert_eq!(site.server.stats().tokens_rejected.value(), 1);
}

#[test]
fn a_retired_session_ends_with_its_last_stream() {
    let site = Site::new();
    let client = site.joined(Mode::Yamux);
    let echo = target(echo);
    let mut stream = open(&client, &echo);
    let session = client.snapshot().sessions[0].session;
    client.retire(session);
    stream.write_all(b"still here").unwrap();
    let mut received = [0; 10];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still here");
    stream.shutdown(Shutdown::Write).unwrap();
    let lost = wait(&client, |event| matches!(event, Event::SessionLost { .. }));
    assert!(matches!(
        lost,
        Event::SessionLost {
            ended: Ended::Retired,
            ..
        }
    ));
}

#[test]
fn a_retired_session_that_is_cut_is_reported_as_lost() {
    let site = Site::new();
    let relay = Relay::to(site.server.address());
    let client = site.client();
    client.dial(DialPlan {
        upstream: 0,
        port: relay.address.port(),
        ..site.plan(Mode::Yamux)
    });
    wait(&client, |event| matches!(event, Event::SessionUp { .. }));
    let stream = open(&client, &target(echo));
    client.retire(client.snapshot().sessions[0].session);
    relay.cut();
    let lost = wait(&client, |event| matches!(event, Event::SessionLost { .. }));
    assert!(
        matches!(
            lost,
            Event::SessionLost {
                ended: Ended::Lost(_),
                ..
            }
        ),
        "{lost:?}"
    );
    drop(stream);
}

#[test]
fn without_a_session_a_stream_waits_and_then_fails_with_the_reason() {
    let site = Site::new();
    let client = site.client();
    let target: Target = "192.0.2.1:80".parse().unwrap();
    let started = Instant::now();
    let failure = opened(&client, &target, Some(Duration::from_millis(200))).unwrap_err();
    assert_eq!(failure.code, Code::SessionTimeout);
    assert!(started.elapsed() >= Duration::from_millis(200));
    client.set_unavailable(Some("the server is gone".to_owned()), "tcp-refused");
    let failure = opened(&client, &target, Some(LIMIT)).unwrap_err();
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (Code::NoSession, "the server is gone")
    );
}

#[test]
fn the_end_of_the_server_is_the_end_of_the_session() {
    let site = Site::new();
    let client = site.joined(Mode::Yamux);
    site.server.close(Duration::from_secs(5));
    wait(&client, |event| matches!(event, Event::SessionLost { .. }));
    assert!(client.snapshot().sessions.is_empty());
}

/// A target whose connections are never accepted: nobody answers for it.
struct Silent {
    _listener: socket2::Socket,
    _waiting: Vec<TcpStream>,
    target: Target,
}

impl Silent {
    fn new() -> Self {
        let listener =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        // The backlog is full from here on: the next SYN is dropped.
        let waiting = (0..2)
            .filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok())
            .collect();
        Self {
            _listener: listener,
            _waiting: waiting,
            target: address.to_string().parse().unwrap(),
        }
    }
}

#[test]
fn an_opening_that_is_given_up_leaves_nothing_behind() {
    let site = Site::new();
    let silent = Silent::new();
    for mode in [Mode::Yamux, Mode::Simple] {
        let client = site.joined(mode);
        let pending: Vec<_> = (0..20)
            .map(|_| client.open(&silent.target, Some(LIMIT), None))
            .collect();
        until(|| site.server.stats().streams.streams.value() >= 20);
        for pending in &pending {
            assert!(!pending.wait(Duration::ZERO));
            pending.cancel();
            assert!(pending.take().is_none());
        }
        until(|| client.is_idle() && site.server.stats().streams.streams.value() == 0);
    }
}

#[test]
fn one_deadline_is_for_the_session_and_the_answer() {
    let site = Site::new();
    let silent = Silent::new();
    for mode in [Mode::Yamux, Mode::Simple] {
        let client = site.joined(mode);
        let failure =
            opened(&client, &silent.target, Some(Duration::from_millis(200))).unwrap_err();
        assert_eq!(failure.code, Code::TargetTimeout);
        until(|| client.is_idle() && site.server.stats().streams.streams.value() == 0);
    }
}

#[test]
fn what_is_being_opened_ends_with_the_client() {
    let site = Site::new();
    let silent = Silent::new();
    let client = site.joined(Mode::Yamux);
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    let done = Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let pending = client.open(&silent.target, Some(LIMIT), Some(done));
    until(|| site.server.stats().streams.streams.value() == 1);
    client.close(Duration::ZERO);
    assert_eq!(pending.take().unwrap().unwrap_err().code, Code::Shutdown);
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[test]
fn a_program_can_tell_the_end_of_the_data_from_a_lost_session() {
    let site = Site::new();
    let goes_on = Arc::new(AtomicBool::new(true));
    let goes_on_there = Arc::clone(&goes_on);
    let target = target(move |mut connection: TcpStream| {
        connection.write_all(b"half").unwrap();
        let mut word = [0; 1];
        let _ = connection.read(&mut word);
        if word == *b"r" {
            let _ = socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO));
        }
        while word == *b"w" && goes_on_there.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
    });
    for (word, wanted) in [
        (b"e", StreamEnded::Data),
        (b"r", StreamEnded::Reset),
        (b"w", StreamEnded::SessionLost),
    ] {
        let client = site.joined(Mode::Yamux);
        let (mut stream, ending) = open_with_end(&client, &target);
        let mut received = [0; 4];
        stream.read_exact(&mut received).unwrap();
        assert_eq!(ending.get(), None);
        stream.write_all(word).unwrap();
        if wanted == StreamEnded::SessionLost {
            client.close(Duration::ZERO);
        }
        match stream.read(&mut received) {
            Ok(0) => {}
            // Where our last byte was not taken any more, the system itself says that it was no end.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                assert_ne!(wanted, StreamEnded::Data);
            }
            other => panic!("expected an end, not {other:?}"),
        }
        assert_eq!(ending.get(), Some(wanted));
        goes_on.store(wanted != StreamEnded::SessionLost, Ordering::Relaxed);
    }
}

/// Waits for what must come.
fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(5));
    }
}
