//! What a handshake costs, both ends together in one thread: CPU milliseconds each; and what trusting the system's roots
//! costs in time and memory.
//!
//! `cargo bench -p ech-workers-tls --bench handshakes [-- COUNT]`. Linux only (CPU time and memory from /proc).

#![allow(clippy::unwrap_used)] // what fails here is the machine
#![allow(missing_docs)]
#![cfg(target_os = "linux")]

use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tls::ech::{EchKey, config_list};
use ech_workers_tls::{
    ClientContext, ClientParameters, Ech, HelloForm, ServerContext, Trust, accept, connect,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn main() {
    // cargo passes `--bench`.
    let count: u32 = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(300);
    let (before, start) = (resident(), cpu());
    let system = ClientContext::new(&Trust {
        system: true,
        extra_pem: Vec::new(),
    });
    println!(
        "the system's roots: {:.1} CPU ms, {} KiB{}",
        (cpu() - start) * 1e3,
        (resident() - before) / 1024,
        if system.is_ok() { "" } else { " (none)" }
    );
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(handshakes(count));
}

async fn handshakes(count: u32) {
    let authority = CertificateAuthority::new().unwrap();
    let client = ClientContext::new(&Trust {
        system: false,
        extra_pem: vec![authority.root_pem().unwrap()],
    })
    .unwrap();
    let identity = authority
        .issue(&["bench.test", "public.test"], Validity::days(1))
        .unwrap();
    let server = ServerContext::new(&[identity]).unwrap();
    let key = EchKey::generate(1, "public.test", 64).unwrap();
    server.set_ech_keys(std::slice::from_ref(&key)).unwrap();
    let list = config_list(&[key]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for profile in ech_workers_tls::profile::ALL {
        for (name, ech, session_key) in [
            ("full, without ECH", Ech::Off, None),
            ("full, with ECH", Ech::List(&list), None),
            ("resumed, with ECH", Ech::List(&list), Some(profile.name)),
        ] {
            let parameters = ClientParameters {
                profile,
                form: HelloForm::WebSocket,
                server_name: "bench.test",
                ech,
                without: None,
                session_key,
            };
            let mut start = cpu();
            for number in 0..=count {
                if number == 1 {
                    // The first one brings the first ticket.
                    start = cpu();
                }
                let (ours, theirs) = tokio::join!(
                    async {
                        let tcp = TcpStream::connect(address).await.unwrap();
                        let mut tls = connect(tcp, &client, parameters).await.unwrap();
                        // The tickets come before the first data.
                        tls.read_exact(&mut [0; 1]).await.unwrap();
                        tls
                    },
                    async {
                        let (tcp, _) = listener.accept().await.unwrap();
                        let mut tls = accept(tcp, &server).await.unwrap();
                        tls.write_all(b"x").await.unwrap();
                        tls.flush().await.unwrap();
                        tls
                    }
                );
                assert_eq!(ours.info().ech_accepted, ech != Ech::Off);
                assert_eq!(
                    theirs.info().resumed,
                    session_key.is_some() && number > 0,
                    "{number}"
                );
            }
            println!(
                "{:12} {name:20} {:.2} CPU ms",
                profile.name,
                (cpu() - start) * 1e3 / f64::from(count)
            );
        }
    }
}

/// This thread's CPU time so far, in seconds.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
    nanoseconds / 1e9
}

/// Resident memory of the process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
