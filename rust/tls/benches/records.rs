//! What a byte costs on its way through the record layer: CPU seconds of sender and receiver for each GB, one connection
//! over loopback, AES-128-GCM, a thread and a runtime for each end.
//!
//! `cargo bench -p ech-workers-tls --bench records [-- GB]`. Linux only (thread CPU time from /proc).

#![allow(clippy::unwrap_used)] // what fails here is the machine
#![allow(missing_docs)]
#![cfg(target_os = "linux")]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::ready;
use std::time::Instant;

use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tls::{
    ClientContext, ClientParameters, Ech, HelloForm, Profile, ServerContext, TlsStream, Trust,
    accept, connect,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Tcp,
    Records,
    Bytes,
}

fn main() {
    // cargo passes `--bench`.
    let gigabytes: f64 = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(2.0);
    let total = (gigabytes * 1e9) as usize;
    for _ in 0..3 {
        for (name, way) in [
            ("plain TCP, 64 KiB", Way::Tcp),
            ("TLS record by record", Way::Records),
            ("TLS as a byte stream, 64 KiB", Way::Bytes),
        ] {
            let (send, receive, seconds) = run(way, total);
            println!(
                "{name:32} {:6.2} GB/s   CPU s/GB: send {:.3} receive {:.3} sum {:.3}",
                gigabytes / seconds,
                send / gigabytes,
                receive / gigabytes,
                (send + receive) / gigabytes
            );
        }
    }
}

fn run(way: Way, total: usize) -> (f64, f64, f64) {
    let authority = CertificateAuthority::new().unwrap();
    let client = ClientContext::new(&Trust {
        system: false,
        extra_pem: vec![authority.root_pem().unwrap()],
    })
    .unwrap();
    let identity = authority.issue(&["bench.test"], Validity::days(1)).unwrap();
    let server = ServerContext::new(&[identity]).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let receiver =
        std::thread::spawn(move || runtime().block_on(receive(way, listener, server, total)));
    let (send, seconds) = runtime().block_on(send(way, address, client, total));
    (send, receiver.join().unwrap(), seconds)
}

async fn send(way: Way, address: SocketAddr, client: ClientContext, total: usize) -> (f64, f64) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let chunk = vec![7; 65536];
    let mut answer = [0; 1];
    if way == Way::Tcp {
        let (cpu, start) = (cpu(), Instant::now());
        let mut sent = 0;
        while sent < total {
            tcp.write_all(&chunk).await.unwrap();
            sent += chunk.len();
        }
        tcp.shutdown().await.unwrap();
        let _ = tcp.read(&mut answer).await;
        return (self::cpu() - cpu, start.elapsed().as_secs_f64());
    }
    let parameters = ClientParameters {
        profile: Profile::standard(),
        form: HelloForm::WebSocket,
        server_name: "bench.test",
        ech: Ech::Off,
        without: None,
        session_key: None,
    };
    let mut tls = connect(tcp, &client, parameters).await.unwrap();
    assert_eq!(tls.info().cipher, "TLS_AES_128_GCM_SHA256");
    let (cpu, start) = (cpu(), Instant::now());
    let mut sent = 0;
    if way == Way::Records {
        // As the tunnel does it: the plaintext is there already, put by a read from another socket.
        poll_fn(|cx| {
            while sent < total {
                ready!(tls.poll_ready(cx)).unwrap();
                let length = tls.record().len();
                tls.seal(length).unwrap();
                sent += length;
            }
            tls.poll_flush(cx)
        })
        .await
        .unwrap();
    } else {
        while sent < total {
            tls.write_all(&chunk).await.unwrap();
            sent += chunk.len();
        }
        tls.flush().await.unwrap();
    }
    tls.shutdown().await.unwrap();
    let _ = tls.read(&mut answer).await;
    (self::cpu() - cpu, start.elapsed().as_secs_f64())
}

async fn receive(
    way: Way,
    listener: std::net::TcpListener,
    server: ServerContext,
    total: usize,
) -> f64 {
    let listener = TcpListener::from_std(listener).unwrap();
    let (mut tcp, _) = listener.accept().await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 256 * 1024];
    let mut received = 0;
    if way == Way::Tcp {
        let cpu = cpu();
        while let Ok(length @ 1..) = tcp.read(&mut buffer).await {
            received += length;
        }
        assert!(received >= total);
        return self::cpu() - cpu;
    }
    let mut tls: TlsStream = accept(tcp, &server).await.unwrap();
    let cpu = cpu();
    if way == Way::Records {
        poll_fn(|cx| {
            while let Some(bytes) = ready!(tls.poll_open(cx)).unwrap() {
                received += bytes.len();
            }
            std::task::Poll::Ready(())
        })
        .await;
    } else {
        while let length @ 1.. = tls.read(&mut buffer).await.unwrap() {
            received += length;
        }
    }
    assert!(received >= total);
    self::cpu() - cpu
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// This thread's CPU time so far, in seconds.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
    nanoseconds / 1e9
}
