//! Servers and recorders on loopback for the tests beside it.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot
#![allow(dead_code)] // each test binary uses its own part

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ech_workers_boringssl::hpke::HpkeKey;
use ech_workers_boringssl::pkey::PKey;
use ech_workers_boringssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslEchKeys, SslMethod, SslStream, SslVersion,
};
use ech_workers_boringssl::x509::X509;
use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tls::ech::EchKey;
use ech_workers_tls::{
    ClientContext, ClientParameters, Ech, HandshakeError, HelloForm, Identity, Profile,
    ServerContext, TlsStream, Trust, accept, connect,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The name that must never be seen.
pub(crate) const INNER: &str = "secret.test";
/// The name that may be.
pub(crate) const PUBLIC: &str = "public.test";

/// An authority, a client that trusts it, and a server of it for both names.
pub(crate) struct World {
    pub(crate) authority: CertificateAuthority,
    pub(crate) client: ClientContext,
    pub(crate) server: ServerContext,
}

impl World {
    pub(crate) fn new() -> Self {
        let authority = CertificateAuthority::new().unwrap();
        let client = trusting(&authority);
        let server = ServerContext::new(&[
            authority.issue(&[PUBLIC], Validity::days(1)).unwrap(),
            authority.issue(&[INNER], Validity::days(1)).unwrap(),
        ])
        .unwrap();
        Self {
            authority,
            client,
            server,
        }
    }

    /// A world whose server has this ECH key.
    pub(crate) fn with_ech(key: &EchKey) -> Self {
        let world = Self::new();
        world
            .server
            .set_ech_keys(std::slice::from_ref(key))
            .unwrap();
        world
    }
}

pub(crate) fn trusting(authority: &CertificateAuthority) -> ClientContext {
    ClientContext::new(&Trust {
        system: false,
        extra_pem: vec![authority.root_pem().unwrap()],
    })
    .unwrap()
}

pub(crate) fn key(id: u8) -> EchKey {
    EchKey::generate(id, PUBLIC, 64).unwrap()
}

pub(crate) fn parameters(ech: Ech<'_>) -> ClientParameters<'_> {
    ClientParameters {
        profile: Profile::standard(),
        form: HelloForm::FirstContact,
        server_name: INNER,
        ech,
        without: None,
        session_key: None,
    }
}

/// A server that echoes every connection until its end. Handshakes that fail are dropped.
pub(crate) async fn echo(context: &ServerContext) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let context = context.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let context = context.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = accept(tcp, &context).await else {
                    return;
                };
                let mut buffer = vec![0; 16384];
                while let Ok(length @ 1..) = tls.read(&mut buffer).await {
                    tls.write_all(&buffer[..length]).await.unwrap();
                    tls.flush().await.unwrap();
                }
                let _ = tls.shutdown().await;
            });
        }
    });
    address
}

pub(crate) async fn dial(
    address: SocketAddr,
    client: &ClientContext,
    parameters: ClientParameters<'_>,
) -> Result<TlsStream, HandshakeError> {
    let tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    connect(tcp, client, parameters).await
}

/// Both ends of a connection.
pub(crate) async fn pair(
    world: &World,
    parameters: ClientParameters<'_>,
) -> (TlsStream, TlsStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(dial(address, &world.client, parameters), async {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        accept(tcp, &world.server).await
    });
    (client.unwrap(), server.unwrap())
}

/// Sends a word and expects it back.
pub(crate) async fn ping(tls: &mut TlsStream) {
    tls.write_all(b"ping").await.unwrap();
    tls.flush().await.unwrap();
    let mut answer = [0; 4];
    tls.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

/// Passes connections on and keeps every byte that the client sends.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    pub(crate) async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let kept = sent.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(target).await.unwrap();
                let kept = kept.clone();
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = async {
                        let mut buffer = vec![0; 16384];
                        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                            kept.lock().unwrap().extend_from_slice(&buffer[..length]);
                            if to_server.write_all(&buffer[..length]).await.is_err() {
                                break;
                            }
                        }
                        let _ = to_server.shutdown().await;
                    };
                    let down = async {
                        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
                        let _ = to_client.shutdown().await;
                    };
                    tokio::join!(up, down);
                });
            }
        });
        Self {
            address,
            sent,
            task,
        }
    }

    pub(crate) fn sent(&self) -> Vec<u8> {
        self.sent.lock().unwrap().clone()
    }

    /// Panics if the inner name, in whatever case, is in what the client has sent.
    pub(crate) fn assert_no_inner_name(&self) {
        assert_absent(&self.sent());
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Panics if the inner name, or its first label, is there.
pub(crate) fn assert_absent(bytes: &[u8]) {
    let lower = bytes.to_ascii_lowercase();
    let label = INNER.split('.').next().unwrap().as_bytes();
    assert!(
        !lower.windows(label.len()).any(|window| window == label),
        "the inner name was sent in clear"
    );
}

/// A BoringSSL server beside our own, for what ours does not do.
pub(crate) fn raw_server(identity: &Identity) -> SslContextBuilder {
    let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
    let certificate = X509::from_pem(&identity.chain_pem).unwrap();
    builder.set_certificate(&certificate).unwrap();
    let key = PKey::private_key_from_pem(&identity.key_pem).unwrap();
    builder.set_private_key(&key).unwrap();
    builder
        .set_min_proto_version(Some(SslVersion::TLS1_2))
        .unwrap();
    builder
}

/// A key for such a server.
pub(crate) fn raw_ech_keys(key: &EchKey) -> SslEchKeys {
    let private = PKey::private_key_from_pem(key.to_pem().as_bytes()).unwrap();
    let mut raw = [0; 32];
    let raw = private.raw_private_key(&mut raw).unwrap();
    let mut keys = SslEchKeys::builder().unwrap();
    keys.add_key(
        true,
        key.config().encoded(),
        HpkeKey::dhkem_x25519_sha256(raw).unwrap(),
    )
    .unwrap();
    keys.build()
}

/// Echoes up to `connections` connections of such a server.
pub(crate) fn raw_echo(context: SslContext, connections: usize) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for _ in 0..connections {
            let (tcp, _) = listener.accept().unwrap();
            let mut tls = SslStream::new(Ssl::new(&context).unwrap(), tcp).unwrap();
            if tls.accept().is_err() {
                continue;
            }
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = tls.read(&mut buffer) {
                tls.write_all(&buffer[..length]).unwrap();
            }
            let _ = tls.shutdown();
        }
    });
    address
}
