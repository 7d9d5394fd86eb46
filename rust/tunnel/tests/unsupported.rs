//! A server that chooses what the browser can do and this client cannot, made by another hand: OpenSSL.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helper functions too"
)]

mod site;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ech_workers_tls::Profile;
use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tunnel::{Client, Code, DialPlan, Event, FetchPlan, Layer, Next};

#[test]
fn a_server_that_prefers_a_finite_field_group_is_met_by_one_more_try_and_a_log_line() {
    // secp384r1 is in the hello as well, without a key share: the server asks for what it likes best.
    let Some(server) = OpensslServer::start("ffdhe2048:secp384r1") else {
        return;
    };
    let client = server.client();
    client.fetch(server.fetch_plan());
    let (event, log) = outcome(&client);
    match event {
        Event::Fetched { fetched, .. } => assert_eq!(fetched.status, 200),
        other => panic!("{other:?}"),
    }
    assert_one_more_try(&log);

    client.dial(server.dial_plan());
    let (event, log) = outcome(&client);
    match event {
        // TLS stands; OpenSSL's page is no tunnel.
        Event::DialFailed { failure, .. } => assert_eq!(failure.layer, Layer::Token, "{failure}"),
        other => panic!("{other:?}"),
    }
    assert_one_more_try(&log);
}

#[test]
fn a_server_that_can_do_nothing_else_is_given_up_after_one_more_try() {
    let Some(server) = OpensslServer::start("ffdhe2048") else {
        return;
    };
    let client = server.client();
    client.dial(server.dial_plan());
    let (event, log) = outcome(&client);
    match event {
        Event::DialFailed { failure, .. } => {
            assert_eq!(failure.code, Code::TlsAlert, "{failure}");
            assert!(
                failure
                    .detail
                    .unwrap()
                    .contains("finite field group 0x0100")
            );
        }
        other => panic!("{other:?}"),
    }
    assert_one_more_try(&log);
}

fn assert_one_more_try(log: &[String]) {
    let tries = log.iter().filter(|line| line.contains("once more without"));
    assert_eq!(tries.count(), 1, "{log:?}");
}

/// The next outcome, and what was logged until then.
fn outcome(client: &Client) -> (Event, Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut found, mut log) = (None, Vec::new());
    loop {
        let rest = match found {
            None => deadline.saturating_duration_since(Instant::now()),
            // Log lines may come behind the event that they belong to.
            Some(_) => Duration::ZERO,
        };
        match (client.events().next(Some(rest)), found.take()) {
            (Next::Log(line), event) => {
                log.push(line.message);
                found = event;
            }
            (_, Some(event)) => return (event, log),
            (
                Next::Event(
                    event @ (Event::Fetched { .. }
                    | Event::FetchFailed { .. }
                    | Event::SessionUp { .. }
                    | Event::DialFailed { .. }),
                ),
                None,
            ) => found = Some(event),
            (Next::Event(_) | Next::Woken, None) => {}
            (Next::TimedOut | Next::Closed, None) => panic!("there was no outcome"),
        }
    }
}

/// `openssl s_server` on a port of its own, with a page about the connection as its answer to every request.
struct OpensslServer {
    process: Child,
    /// Its standard output, open as long as it runs.
    _output: BufReader<ChildStdout>,
    directory: PathBuf,
    address: SocketAddr,
    authority: CertificateAuthority,
}

impl OpensslServer {
    /// Starts one; `None` where there is no openssl, which in CI is a failure.
    fn start(groups: &str) -> Option<Self> {
        if let Err(error) = Command::new("openssl").arg("version").output() {
            let in_ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
            assert!(!in_ci, "openssl: {error}");
            eprintln!("skipped: openssl: {error}");
            return None;
        }
        let authority = CertificateAuthority::new().unwrap();
        let identity = authority
            .issue(&["hidden.test"], Validity::days(1))
            .unwrap();
        let name = format!("ech-workers-openssl-{}-{groups}", std::process::id());
        let directory = std::env::temp_dir().join(name.replace(':', "-"));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("certificate.pem"), &identity.chain_pem).unwrap();
        std::fs::write(directory.join("key.pem"), &identity.key_pem).unwrap();
        let mut process = Command::new("openssl")
            .args(["s_server", "-tls1_3", "-www", "-accept", "127.0.0.1:0"])
            .args(["-cert", "certificate.pem", "-key", "key.pem"])
            .args(["-groups", groups])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let address = output
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok())
            .unwrap();
        Some(Self {
            process,
            _output: output,
            directory,
            address,
            authority,
        })
    }

    fn client(&self) -> Client {
        site::client(&self.authority)
    }

    fn dial_plan(&self) -> DialPlan {
        // OpenSSL 3.0 knows nothing of ECH.
        site::plan(self.address)
    }

    fn fetch_plan(&self) -> FetchPlan {
        FetchPlan {
            server_name: "hidden.test".to_owned(),
            port: self.address.port(),
            addresses: vec![self.address.ip()],
            path: "/".to_owned(),
            post: false,
            body: bytes::Bytes::new(),
            profile: Profile::standard(),
            http1_only: false,
            timeout: Duration::from_secs(5),
            max_body: 65_536,
        }
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
