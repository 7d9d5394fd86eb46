//! A client on this machine, and a plan for one dial, as the tests of this folder use them.

use std::net::SocketAddr;
use std::time::Duration;

use ech_workers_tls::authority::CertificateAuthority;
use ech_workers_tls::{ClientContext, Profile, Trust};
use ech_workers_tunnel::{Client, ClientConfig, ClientLimits, DialPlan, Mode};
use tracing::level_filters::LevelFilter;

/// A client that trusts `authority` alone.
pub(crate) fn client(authority: &CertificateAuthority) -> Client {
    let trust = Trust {
        system: false,
        extra_pem: vec![authority.root_pem().unwrap()],
    };
    let config = ClientConfig {
        limits: ClientLimits {
            max_connections: 1024,
            open_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            memory_limit: 64 << 20,
            confirmed: false,
        },
        local_handshake_timeout: Duration::from_secs(5),
        half_closed_timeout: Duration::from_secs(30),
        ping_interval: Duration::from_secs(20),
        ping_timeout: Duration::from_secs(10),
        receive_window_max: 16 << 20,
        workers: 1,
        log_level: LevelFilter::DEBUG,
    };
    Client::new(config, ClientContext::new(&trust).unwrap()).unwrap()
}

/// To the server `hidden.test` at `address`, without token and ECH.
pub(crate) fn plan(address: SocketAddr) -> DialPlan {
    DialPlan {
        upstream: 0,
        server_name: "hidden.test".to_owned(),
        port: address.port(),
        authority_port: None,
        path: "/ws".to_owned(),
        token: None,
        addresses: vec![address.ip()],
        ech: None,
        profile: Profile::standard(),
        websocket_hello: false,
        mode: Mode::Simple,
        tcp_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(5),
    }
}
