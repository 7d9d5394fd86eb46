//! What a connection costs that does nothing. A test binary of its own: it looks at the whole process.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot
#![cfg(target_os = "linux")]

mod loopback;

use ech_workers_tls::Ech;
use loopback::{World, pair, parameters};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn an_idle_connection_costs_little_memory() {
    const PAIRS: usize = 500;
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    let world = World::new();
    let mut pairs = Vec::new();
    let make = async || {
        let (mut client, mut server) = pair(&world, parameters(Ech::Off)).await;
        for (from, to) in [(true, false), (false, true)] {
            let (from, to) = match (from, to) {
                (true, _) => (&mut client, &mut server),
                _ => (&mut server, &mut client),
            };
            from.write_all(&[1; 50_000]).await.unwrap();
            from.flush().await.unwrap();
            to.read_exact(&mut vec![0; 50_000]).await.unwrap();
        }
        (client, server)
    };
    // What is paid once is paid before.
    for _ in 0..50 {
        make().await;
    }
    let before = resident();
    for _ in 0..PAIRS {
        pairs.push(make().await);
    }
    let each = resident().saturating_sub(before) / (2 * PAIRS);
    println!("{each} bytes for each end");
    assert!(each < 6_000, "{each} bytes for each end");
}
