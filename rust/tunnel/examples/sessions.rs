//! Many sessions with idle streams, for what each costs the server:
//! `sessions SERVER:PORT NAME PATH TOKEN ECH.bin CA.pem TARGET SESSIONS STREAMS [REQUESTS]`.
//!
//! They are dialed and opened by the tunnel's own client and stay until the program is ended. Prints a JSON line when all
//! sessions are up, and one when all streams are open. With REQUESTS, the streams make so many small requests then, in turn, and a
//! third line says how long these took, in ms.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ech_workers_proxy::Target;
use ech_workers_tls::{ClientContext, Profile, Trust};
use ech_workers_tunnel::{Client, ClientConfig, ClientLimits, DialPlan, Event, Mode, Next};
use tracing::level_filters::LevelFilter;

const LIMIT: Duration = Duration::from_secs(60);
/// Between two requests, so that each meets the tunnel at rest.
const PAUSE: Duration = Duration::from_millis(2);
const FOR_EVER: Duration = Duration::from_secs(86_400);
/// Handshakes under way at a time.
const AT_A_TIME: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [
        server,
        name,
        path,
        token,
        ech,
        ca,
        target,
        sessions,
        streams,
        ref requests @ ..,
    ] = words[..]
    else {
        return Err("usage: see the source".into());
    };
    let (sessions, streams): (usize, usize) = (sessions.parse()?, streams.parse()?);
    let (server, target): (SocketAddr, Target) = (server.parse()?, target.parse()?);
    let trust = Trust {
        system: false,
        extra_pem: vec![std::fs::read(ca)?],
    };
    let client = Client::new(config(streams), ClientContext::new(&trust)?)?;
    let plan = DialPlan {
        upstream: 0,
        server_name: name.to_owned(),
        port: server.port(),
        authority_port: None,
        path: path.to_owned(),
        token: Some(token.to_owned()),
        addresses: vec![server.ip()],
        ech: Some(std::fs::read(ech)?),
        profile: Profile::standard(),
        websocket_hello: true,
        mode: Mode::Yamux,
        tcp_timeout: LIMIT,
        handshake_timeout: LIMIT,
    };
    let mut up = 0;
    while up < sessions {
        let batch = AT_A_TIME.min(sessions - up);
        for _ in 0..batch {
            client.dial(plan.clone());
        }
        up += batch;
        wait_sessions(&client, batch)?;
    }
    println!(r#"{{"event":"sessions","count":{up}}}"#);
    let mut open = Vec::with_capacity(streams);
    for _ in 0..streams {
        let pending = client.open(&target, None, None);
        pending.wait(LIMIT);
        let stream = pending.take().ok_or("no answer in time")??;
        let (socket, _) = stream.into_parts().ok_or("the stream is gone")?;
        let mut stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        // There and back: the server has connected to the target.
        stream.write_all(b"Ex")?;
        stream.read_exact(&mut [0; 1])?;
        open.push(stream);
    }
    println!(r#"{{"event":"streams","count":{}}}"#, open.len());
    if let [requests] = requests {
        ask(&mut open, requests.parse()?)?;
    }
    loop {
        std::thread::sleep(FOR_EVER);
    }
}

/// Small requests, one stream after the other.
fn ask(open: &mut [UnixStream], requests: usize) -> Result<(), Box<dyn Error>> {
    let mut taken = Vec::with_capacity(requests);
    let mut message = [0; 64];
    let count = open.len();
    for number in 0..requests {
        let stream = &mut open[number % count];
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        taken.push(start.elapsed());
        std::thread::sleep(PAUSE);
    }
    taken.sort();
    let quantile = |part: usize| taken[(taken.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!(
        r#"{{"event":"requests","p50":{},"p99":{}}}"#,
        quantile(50),
        quantile(99)
    );
    Ok(())
}

fn wait_sessions(client: &Client, mut wanted: usize) -> Result<(), Box<dyn Error>> {
    while wanted > 0 {
        match client.events().next(Some(LIMIT)) {
            Next::Event(Event::SessionUp { .. }) => wanted -= 1,
            Next::Event(Event::DialFailed { failure, .. }) => {
                return Err(failure.to_string().into());
            }
            Next::TimedOut | Next::Closed => return Err("a session did not come up".into()),
            _ => {}
        }
    }
    Ok(())
}

fn config(streams: usize) -> ClientConfig {
    ClientConfig {
        limits: ClientLimits {
            max_connections: streams,
            open_timeout: LIMIT,
            idle_timeout: FOR_EVER,
            memory_limit: 256 << 20,
            confirmed: false,
        },
        local_handshake_timeout: LIMIT,
        half_closed_timeout: LIMIT,
        // As `ech-workers proxy` does it.
        ping_interval: Duration::from_secs(20),
        ping_timeout: LIMIT,
        receive_window_max: 16 << 20,
        workers: 1,
        log_level: LevelFilter::INFO,
    }
}
