//! Dials and exchanges with several addresses, of which the first accepts TCP and is not usable.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helper functions too"
)]

mod site;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ech_workers_proxy::Target;
use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tls::{Profile, ServerContext};
use ech_workers_tunnel::{
    Client, Code, DialPlan, Event, FaceConfig, FetchPlan, Mode, Next, Server, ServerConfig,
    ServerLimits,
};
use tracing::level_filters::LevelFilter;

const TOKEN: &str = "a-token-of-this-test";
const LIMIT: Duration = Duration::from_secs(20);
/// Where the good server is, and where the bad one stands beside it, on the same port.
const GOOD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const BAD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// What the bad address does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bad {
    Resets,
    StaysSilent,
    IsAnotherServer,
    /// It has the right certificate, and then says nothing.
    SilentAfterTls,
}

const KINDS: [Bad; 4] = [
    Bad::Resets,
    Bad::StaysSilent,
    Bad::IsAnotherServer,
    Bad::SilentAfterTls,
];

/// A good server and a bad one on the same port of two addresses.
struct Pair {
    good: Server,
    authority: CertificateAuthority,
    /// Connections that the bad one has accepted.
    accepted: Arc<AtomicUsize>,
    /// Kept while the test runs.
    _foreign: Option<Server>,
}

impl Pair {
    fn new(bad: Bad) -> Self {
        let authority = CertificateAuthority::new().unwrap();
        let (good, port) = std::iter::repeat_with(|| {
            let good = server(GOOD, 0, context(&authority));
            let port = good.address().port();
            (good, port)
        })
        // Somebody else may have this port at the other address.
        .find(|(_, port)| TcpListener::bind((BAD, *port)).is_ok())
        .unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut foreign = None;
        match bad {
            Bad::IsAnotherServer => {
                let other = CertificateAuthority::new().unwrap();
                foreign = Some(server(BAD, port, context(&other)));
            }
            Bad::SilentAfterTls => {
                let listener = TcpListener::bind((BAD, port)).unwrap();
                let context = context(&authority);
                let accepted = Arc::clone(&accepted);
                thread::spawn(move || speak_tls_alone(&listener, &context, &accepted));
            }
            Bad::Resets | Bad::StaysSilent => {
                let listener = TcpListener::bind((BAD, port)).unwrap();
                let accepted = Arc::clone(&accepted);
                thread::spawn(move || {
                    let mut held = Vec::new();
                    for connection in listener.incoming().map_while(Result::ok) {
                        accepted.fetch_add(1, Ordering::Relaxed);
                        if bad == Bad::Resets {
                            reset(&connection);
                        } else {
                            held.push(connection);
                        }
                    }
                });
            }
        }
        Self {
            good,
            authority,
            accepted,
            _foreign: foreign,
        }
    }

    fn client(&self) -> Client {
        site::client(&self.authority)
    }

    fn plan(&self, mode: Mode) -> DialPlan {
        DialPlan {
            token: Some(TOKEN.to_owned()),
            addresses: vec![BAD, GOOD],
            mode,
            ..site::plan(self.good.address())
        }
    }

    fn exchange(&self) -> FetchPlan {
        FetchPlan {
            server_name: "hidden.test".to_owned(),
            port: self.good.address().port(),
            addresses: vec![BAD, GOOD],
            path: "/healthz".to_owned(),
            post: false,
            body: bytes::Bytes::new(),
            profile: Profile::standard(),
            http1_only: true,
            timeout: Duration::from_secs(10),
            max_body: 65_536,
        }
    }
}

fn context(authority: &CertificateAuthority) -> ServerContext {
    let identity = authority
        .issue(&["hidden.test"], Validity::days(1))
        .unwrap();
    ServerContext::new(&[identity]).unwrap()
}

fn server(address: IpAddr, port: u16, context: ServerContext) -> Server {
    let config = ServerConfig {
        face: FaceConfig {
            path: "/ws".to_owned(),
            tokens: vec![(TOKEN.to_owned(), "ours".to_owned())],
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
    Server::new(&address.to_string(), port, config, context).unwrap()
}

/// Makes TLS connections, and leaves them there.
fn speak_tls_alone(listener: &TcpListener, context: &ServerContext, accepted: &AtomicUsize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut held = Vec::new();
    for connection in listener.incoming().map_while(Result::ok) {
        accepted.fetch_add(1, Ordering::Relaxed);
        connection.set_nonblocking(true).unwrap();
        held.push(runtime.block_on(async {
            let tcp = tokio::net::TcpStream::from_std(connection).unwrap();
            ech_workers_tls::accept(tcp, context).await
        }));
    }
}

/// Has the connection reset when it is closed.
fn reset(connection: &TcpStream) {
    socket2::SockRef::from(connection)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// The next outcome of a dial or an exchange.
fn outcome(client: &Client) -> Event {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.events().next(Some(left)) {
            Next::Event(
                event @ (Event::SessionUp { .. }
                | Event::DialFailed { .. }
                | Event::Fetched { .. }
                | Event::FetchFailed { .. }),
            ) => return event,
            Next::Event(_) | Next::Log(_) | Next::Woken => {}
            Next::TimedOut | Next::Closed => panic!("there was no outcome"),
        }
    }
}

fn assert_up(event: &Event) {
    match event {
        Event::SessionUp { dialed, .. } => assert_eq!(dialed.address.ip(), GOOD),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dial_goes_on_to_the_address_that_leads_to_the_server() {
    thread::scope(|scope| {
        for bad in KINDS {
            scope.spawn(move || {
                let pair = Pair::new(bad);
                for mode in [Mode::Yamux, Mode::Simple] {
                    let client = pair.client();
                    client.dial(pair.plan(mode));
                    assert_up(&outcome(&client));
                }
            });
        }
    });
}

#[test]
fn an_exchange_goes_on_to_the_address_that_answers() {
    thread::scope(|scope| {
        for bad in KINDS {
            scope.spawn(move || {
                let pair = Pair::new(bad);
                let client = pair.client();
                client.fetch(pair.exchange());
                match outcome(&client) {
                    Event::Fetched { fetched, .. } => assert_eq!(fetched.status, 200),
                    other => panic!("{bad:?}: {other:?}"),
                }
            });
        }
    });
}

#[test]
fn a_connection_of_simple_mode_finds_the_address_that_leads_to_the_server() {
    let pair = Pair::new(Bad::IsAnotherServer);
    let client = pair.client();
    let plan = pair.plan(Mode::Simple);
    client.set_plan(plan.upstream, Some(plan));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target: Target = listener.local_addr().unwrap().to_string().parse().unwrap();
    let serving = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        connection.write_all(b"hello").unwrap();
    });
    let pending = client.open(&target, None, None);
    assert!(pending.wait(LIMIT));
    let (socket, _ending) = pending.take().unwrap().unwrap().into_parts().unwrap();
    let mut stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
    serving.join().unwrap();
}

#[test]
fn an_address_that_failed_is_left_alone_while_another_one_works() {
    for bad in [Bad::Resets, Bad::StaysSilent] {
        let pair = Pair::new(bad);
        let client = pair.client();
        for _ in 0..3 {
            client.dial(pair.plan(Mode::Yamux));
            assert_up(&outcome(&client));
        }
        assert_eq!(pair.accepted.load(Ordering::Relaxed), 1, "{bad:?}");
    }
}

#[test]
fn an_address_that_worked_and_then_stops_to_answer_is_left_for_another_one() {
    let authority = CertificateAuthority::new().unwrap();
    let first = server(BAD, 0, context(&authority));
    let address = first.address();
    let client = site::client(&authority);
    let plan = DialPlan {
        token: Some(TOKEN.to_owned()),
        addresses: vec![BAD, GOOD],
        mode: Mode::Yamux,
        ..site::plan(SocketAddr::new(GOOD, address.port()))
    };
    client.dial(plan.clone());
    match outcome(&client) {
        Event::SessionUp { dialed, .. } => assert_eq!(dialed.address, address),
        other => panic!("{other:?}"),
    }
    drop(first);
    let _dumb = TcpListener::bind(address).unwrap();
    let _good = server(GOOD, address.port(), context(&authority));
    client.dial(plan);
    assert_up(&outcome(&client));
}

#[test]
fn a_refusal_of_the_server_itself_is_final() {
    let pair = Pair::new(Bad::StaysSilent);
    let client = pair.client();
    client.dial(DialPlan {
        token: Some("another".to_owned()),
        addresses: vec![GOOD, BAD],
        ..pair.plan(Mode::Yamux)
    });
    match outcome(&client) {
        Event::DialFailed { failure, .. } => assert_eq!(failure.code, Code::TokenRejected),
        other => panic!("{other:?}"),
    }
    assert_eq!(pair.accepted.load(Ordering::Relaxed), 0);
}
