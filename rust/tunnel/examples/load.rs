//! The load of `make bench`, where Python would be what is measured: small requests, connections, streams that stay open.
//!
//! ```text
//! load target LISTEN
//! load requests PROXY TARGET COUNT [beside]     echoes on one connection; beside: while a bulk stream runs
//! load new PROXY TARGET COUNT                   a connection for each echo, one after the other
//! load connections PROXY TARGET WORKERS SECONDS a connection for each echo, many at a time
//! load idle PROXY TARGET COUNT                  connections that stay open until the program is ended
//! load bulk PROXY TARGET down|up SECONDS        one stream
//! load paced PROXY TARGET SECONDS RATE          one stream down, RATE bytes a second
//! load beside PROXY TARGET SECONDS              beside one stream down: echoes on one connection, then a connection for each
//! ```
//!
//! PROXY is a SOCKS5 port, or `-` for none. Each prints JSON lines. The first byte of a connection tells the target what
//! to do: `E` echo, `D` send for ever, `P` the same at a rate (four bytes, bytes a second), `U` count what comes, and answer every MiB.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const CHUNK: usize = 256 << 10;
/// What is sent at a time at a rate.
const PIECE: usize = 64 << 10;
const MEBIBYTE: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);
/// Between two small requests, so that each meets the tunnel at rest.
const PAUSE: Duration = Duration::from_millis(2);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["target", listen] => target(listen).await,
        ["requests", proxy, to, count] => {
            requests(Way::new(proxy, to)?.echo().await?, count.parse()?).await
        }
        ["requests", proxy, to, count, "beside"] => {
            let way = Way::new(proxy, to)?;
            let moved = Arc::new(AtomicU64::new(0));
            let bulk = tokio::spawn(down(way.clone(), Arc::clone(&moved)));
            sleep(Duration::from_millis(500)).await;
            requests(way.echo().await?, count.parse()?).await?;
            if bulk.is_finished() || moved.load(Ordering::Relaxed) == 0 {
                return Err("the bulk stream did not run".into());
            }
            Ok(())
        }
        ["new", proxy, to, count] => new(Way::new(proxy, to)?, count.parse()?).await,
        ["connections", proxy, to, workers, seconds] => {
            connections(Way::new(proxy, to)?, workers.parse()?, seconds.parse()?).await
        }
        ["idle", proxy, to, count] => idle(Way::new(proxy, to)?, count.parse()?).await,
        ["bulk", proxy, to, direction, seconds] => {
            bulk(Way::new(proxy, to)?, direction == "up", seconds.parse()?).await
        }
        ["paced", proxy, to, seconds, rate] => {
            paced(Way::new(proxy, to)?, seconds.parse()?, rate.parse()?).await
        }
        ["beside", proxy, to, seconds] => beside(Way::new(proxy, to)?, seconds.parse()?).await,
        _ => Err("usage: see the source".into()),
    }
}

async fn target(listen: &str) -> Result {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&listen.parse::<std::net::SocketAddr>()?.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket.into())?;
    println!(
        r#"{{"event":"listening","address":"{}"}}"#,
        listener.local_addr()?
    );
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        // An end in the middle is the other side's choice.
        tokio::spawn(async move { serve(connection).await.unwrap_or_default() });
    }
}

async fn serve(mut connection: TcpStream) -> io::Result<()> {
    match connection.read_u8().await? {
        b'D' => {
            let chunk = vec![0; CHUNK];
            loop {
                connection.write_all(&chunk).await?;
            }
        }
        b'P' => {
            let rate = connection.read_u32().await?.max(1);
            let chunk = vec![0; PIECE];
            let mut due = interval(Duration::from_secs_f64(PIECE as f64 / f64::from(rate)));
            loop {
                due.tick().await;
                connection.write_all(&chunk).await?;
            }
        }
        b'U' => {
            let mut chunk = vec![0; CHUNK];
            let (mut arrived, mut answered) = (0, 0);
            loop {
                match connection.read(&mut chunk).await? {
                    0 => return Ok(()),
                    length => arrived += length as u64,
                }
                while answered + MEBIBYTE <= arrived {
                    connection.write_u8(b'M').await?;
                    answered += MEBIBYTE;
                }
            }
        }
        _ => loop {
            connection.readable().await?;
            // Idle connections hold no buffer.
            let mut some = [0; 1024];
            match connection.try_read(&mut some) {
                Ok(0) => return Ok(()),
                Ok(length) => connection.write_all(&some[..length]).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        },
    }
}

/// To the target, directly or through a SOCKS5 proxy.
#[derive(Clone)]
struct Way {
    proxy: Option<String>,
    target: std::net::SocketAddrV4,
}

impl Way {
    fn new(proxy: &str, target: &str) -> Result<Self> {
        Ok(Self {
            proxy: (proxy != "-").then(|| proxy.to_owned()),
            target: target.parse()?,
        })
    }

    async fn connect(&self) -> Result<TcpStream> {
        let Some(proxy) = &self.proxy else {
            let connection = TcpStream::connect(self.target).await?;
            connection.set_nodelay(true)?;
            return Ok(connection);
        };
        let mut connection = TcpStream::connect(proxy).await?;
        connection.set_nodelay(true)?;
        // RFC 1928: no authentication; CONNECT to an IPv4 address.
        connection.write_all(&[5, 1, 0]).await?;
        connection.read_exact(&mut [0; 2]).await?;
        let mut request = vec![5, 1, 0, 1];
        request.extend(self.target.ip().octets());
        request.extend(self.target.port().to_be_bytes());
        connection.write_all(&request).await?;
        let mut reply = [0; 10];
        connection.read_exact(&mut reply).await?;
        if reply[1] != 0 {
            return Err(format!("SOCKS5 reply {}", reply[1]).into());
        }
        Ok(connection)
    }

    /// A new connection, one byte there and back.
    async fn echo(&self) -> Result<TcpStream> {
        timeout(LIMIT, async {
            let mut connection = self.connect().await?;
            connection.write_all(b"Ex").await?;
            connection.read_u8().await?;
            Ok(connection)
        })
        .await?
    }
}

async fn requests(mut connection: TcpStream, count: usize) -> Result {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(request(&mut connection).await?);
        sleep(PAUSE).await;
    }
    print_quantiles(taken);
    Ok(())
}

/// How long 64 bytes take there and back.
async fn request(connection: &mut TcpStream) -> Result<Duration> {
    let mut message = [0; 64];
    let start = Instant::now();
    timeout(LIMIT, async {
        connection.write_all(&message).await?;
        connection.read_exact(&mut message).await
    })
    .await??;
    Ok(start.elapsed())
}

async fn beside(way: Way, seconds: u64) -> Result {
    let moved = Arc::new(AtomicU64::new(0));
    let bulk = tokio::spawn(down(way.clone(), Arc::clone(&moved)));
    sleep(Duration::from_millis(300)).await;
    let before = moved.load(Ordering::Relaxed);
    let (start, half) = (Instant::now(), Duration::from_secs(seconds) / 2);
    let (mut requests, mut new) = (Vec::new(), Vec::new());
    let mut connection = way.echo().await?;
    while start.elapsed() < half {
        requests.push(request(&mut connection).await?);
        sleep(PAUSE).await;
    }
    while start.elapsed() < half * 2 {
        let begun = Instant::now();
        way.echo().await?;
        new.push(begun.elapsed());
        sleep(PAUSE).await;
    }
    if bulk.is_finished() {
        return Err("the bulk stream did not run".into());
    }
    let bytes = moved.load(Ordering::Relaxed) - before;
    let (requests, new) = (Quantiles::of(requests), Quantiles::of(new));
    println!(
        r#"{{"event":"result","bytes":{bytes},"seconds":{},"requests":{requests},"new":{new}}}"#,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn new(way: Way, count: usize) -> Result {
    let mut taken = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        way.echo().await?;
        taken.push(start.elapsed());
        sleep(PAUSE).await;
    }
    print_quantiles(taken);
    Ok(())
}

fn print_quantiles(taken: Vec<Duration>) {
    let first = taken.first().copied().unwrap_or_default();
    let Quantiles { p50, p99, .. } = Quantiles::of(taken);
    println!(
        r#"{{"event":"result","first":{},"p50":{p50},"p99":{p99}}}"#,
        first.as_secs_f64() * 1e3
    );
}

/// Of so many, in milliseconds.
struct Quantiles {
    count: usize,
    p50: f64,
    p99: f64,
}

impl Quantiles {
    fn of(mut taken: Vec<Duration>) -> Self {
        taken.sort();
        let quantile = |part: usize| {
            let found = taken.get(taken.len().saturating_sub(1) * part / 100);
            found.map_or(f64::NAN, |found| found.as_secs_f64() * 1e3)
        };
        Self {
            count: taken.len(),
            p50: quantile(50),
            p99: quantile(99),
        }
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50, p99 } = self;
        write!(f, r#"{{"count":{count},"p50":{p50},"p99":{p99}}}"#)
    }
}

async fn connections(way: Way, workers: usize, seconds: u64) -> Result {
    let (start, done, failed) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let (done, failed) = (Arc::new(done), Arc::new(failed));
    let mut set = JoinSet::new();
    for _ in 0..workers {
        let (way, done, failed) = (way.clone(), Arc::clone(&done), Arc::clone(&failed));
        set.spawn(async move {
            while start.elapsed() < Duration::from_secs(seconds) {
                let counter = if way.echo().await.is_ok() {
                    &done
                } else {
                    &failed
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    set.join_all().await;
    println!(
        r#"{{"event":"result","done":{},"failed":{},"seconds":{}}}"#,
        done.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn idle(way: Way, count: usize) -> Result {
    const AT_A_TIME: usize = 64;
    let mut open = Vec::new();
    let mut failed = 0;
    while open.len() + failed < count {
        let mut set = JoinSet::new();
        for _ in 0..AT_A_TIME.min(count - open.len() - failed) {
            let way = way.clone();
            set.spawn(async move { way.echo().await });
        }
        for result in set.join_all().await {
            match result {
                Ok(connection) => open.push(connection),
                Err(_) => failed += 1,
            }
        }
    }
    println!(
        r#"{{"event":"open","count":{},"failed":{failed}}}"#,
        open.len()
    );
    std::future::pending().await
}

async fn bulk(way: Way, up: bool, seconds: u64) -> Result {
    let moved = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&moved);
    let start = Instant::now();
    let limit = Duration::from_secs(seconds);
    let ended = if up {
        timeout(limit, self::up(way, counter)).await
    } else {
        timeout(limit, down(way, counter)).await
    };
    if let Ok(Err(error)) = ended {
        return Err(error);
    }
    say_moved(&moved, start);
    Ok(())
}

async fn paced(way: Way, seconds: u64, rate: u32) -> Result {
    let moved = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let receiving = async {
        let mut connection = way.connect().await?;
        connection.write_u8(b'P').await?;
        connection.write_u32(rate).await?;
        receive(&mut connection, &moved).await
    };
    if let Ok(ended) = timeout(Duration::from_secs(seconds), receiving).await {
        return ended;
    }
    say_moved(&moved, start);
    Ok(())
}

fn say_moved(moved: &AtomicU64, start: Instant) {
    println!(
        r#"{{"event":"result","bytes":{},"seconds":{}}}"#,
        moved.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    );
}

async fn down(way: Way, moved: Arc<AtomicU64>) -> Result {
    let mut connection = way.connect().await?;
    connection.write_u8(b'D').await?;
    receive(&mut connection, &moved).await
}

async fn receive(connection: &mut TcpStream, moved: &AtomicU64) -> Result {
    let mut chunk = vec![0; CHUNK];
    loop {
        match connection.read(&mut chunk).await? {
            0 => return Err("the target ended".into()),
            length => moved.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}

/// Counts what the target says has arrived.
async fn up(way: Way, moved: Arc<AtomicU64>) -> Result {
    let mut connection = way.connect().await?;
    connection.write_u8(b'U').await?;
    let (mut answers, mut bytes) = connection.split();
    let chunk = vec![0; CHUNK];
    let send = async {
        loop {
            bytes.write_all(&chunk).await?;
        }
    };
    let count = async {
        loop {
            answers.read_u8().await?;
            moved.fetch_add(MEBIBYTE, Ordering::Relaxed);
        }
    };
    tokio::select! {
        result = send => result,
        result = count => result,
    }
}
