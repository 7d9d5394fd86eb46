//! Handshakes with a server, many at a time, each followed by one small request:
//! `hellos SERVER:PORT NAME ECH.bin CA.pem full|resumed AT_A_TIME SECONDS`.
//!
//! Prints a JSON line: how many were done, how many of them resumed a session, how many failed, and the seconds taken.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ech_workers_tls::{ClientContext, ClientParameters, Ech, HelloForm, Profile, Trust};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const LIMIT: Duration = Duration::from_secs(20);

struct Load {
    server: SocketAddr,
    name: String,
    ech: Vec<u8>,
    tls: ClientContext,
    resumes: bool,
    done: AtomicU64,
    resumed: AtomicU64,
    failed: AtomicU64,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [server, name, ech, ca, kind, at_a_time, seconds] = words[..] else {
        return Err("usage: see the source".into());
    };
    let trust = Trust {
        system: false,
        extra_pem: vec![std::fs::read(ca)?],
    };
    let load = Arc::new(Load {
        server: server.parse()?,
        name: name.to_owned(),
        ech: std::fs::read(ech)?,
        tls: ClientContext::new(&trust)?,
        resumes: match kind {
            "full" => false,
            "resumed" => true,
            _ => return Err("full or resumed".into()),
        },
        done: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds.parse()?);
    let mut set = JoinSet::new();
    for _ in 0..at_a_time.parse::<usize>()? {
        let load = Arc::clone(&load);
        set.spawn(async move {
            while Instant::now() < end {
                let outcome = timeout(LIMIT, load.once()).await;
                match outcome {
                    Ok(Ok(resumed)) => {
                        load.done.fetch_add(1, Ordering::Relaxed);
                        load.resumed
                            .fetch_add(u64::from(resumed), Ordering::Relaxed);
                    }
                    Ok(Err(_)) | Err(_) => {
                        load.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    set.join_all().await;
    println!(
        r#"{{"event":"result","done":{},"resumed":{},"failed":{},"seconds":{}}}"#,
        load.done.load(Ordering::Relaxed),
        load.resumed.load(Ordering::Relaxed),
        load.failed.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

impl Load {
    /// One handshake and one answer, behind which come the tickets for the next one. Whether a session was resumed.
    async fn once(&self) -> Result<bool> {
        let tcp = TcpStream::connect(self.server).await?;
        tcp.set_nodelay(true)?;
        let parameters = ClientParameters {
            profile: Profile::standard(),
            form: HelloForm::WebSocket,
            server_name: &self.name,
            ech: Ech::List(&self.ech),
            without: None,
            session_key: self.resumes.then_some("load"),
        };
        let mut stream = ech_workers_tls::connect(tcp, &self.tls, parameters).await?;
        let resumed = stream.info().resumed;
        let request = format!(
            "GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.name
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err("it did not answer".into());
        }
        Ok(resumed)
    }
}
