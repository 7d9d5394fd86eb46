//! One dial: TCP, TLS with ECH, the WebSocket. What must happen inside one dial happens here: trying the addresses, the
//! one retry after an ECH rejection, the second hello after h2.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ech_workers_sync::Mutex;
use ech_workers_tls::{
    ClientContext, ClientParameters, Ech, HelloForm, Profile, TlsStream, Unsupported,
};
use ech_workers_websocket::Role;
use ech_workers_websocket::handshake::{self, ClientHandshake, RequestTemplate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::carrier::WebSocket;
use crate::client::addresses::Addresses;
use crate::client::connect::{Connection, Destination, Secured, connect_to, reach, secure};
use crate::client::refusal;
use crate::extensions;
use crate::failure::{Code, Failure, Layer};

/// How a connection carries local ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Many streams on one session.
    Yamux,
    /// One WebSocket each.
    Simple,
}

/// How to reach one server; everything one dial needs.
#[derive(Debug, Clone)]
pub struct DialPlan {
    /// The number of the server among those of this client.
    pub upstream: u32,
    /// The server's name: the inner name of the hello, the certificate's, and the Host.
    pub server_name: String,
    /// The port to connect to.
    pub port: u16,
    /// The origin's port, if the HTTPS record names another to connect to: the authority stays (RFC 9460 section 9).
    pub authority_port: Option<u16>,
    /// Path and query of the upgrade request.
    pub path: String,
    /// The Sec-WebSocket-Protocol.
    pub token: Option<String>,
    /// Where it is; tried in turn, those that failed lately last.
    pub addresses: Vec<IpAddr>,
    /// An `ECHConfigList`; `None` sends the name in clear.
    pub ech: Option<Vec<u8>>,
    /// Whose hello to send.
    pub profile: &'static Profile,
    /// Start with the hello that offers `http/1.1` alone: the server is known to choose h2, or the user says so.
    pub websocket_hello: bool,
    /// What the connection will carry.
    pub mode: Mode,
    /// For each address.
    pub tcp_timeout: Duration,
    /// For TLS, and again for the WebSocket.
    pub handshake_timeout: Duration,
}

/// How long a step of a dial may take where another server could have the stream instead.
const HURRY: Duration = Duration::from_secs(3);

impl DialPlan {
    /// The same for a stream that another server could have: it does not wait long for one that does not answer.
    pub(crate) fn hurried(&self) -> Arc<Self> {
        Arc::new(Self {
            tcp_timeout: self.tcp_timeout.min(HURRY),
            handshake_timeout: self.handshake_timeout.min(HURRY),
            ..self.clone()
        })
    }

    fn route(&self) -> Destination<'_> {
        Destination {
            addresses: &self.addresses,
            port: self.port,
            tcp_timeout: self.tcp_timeout,
            handshake_timeout: self.handshake_timeout,
        }
    }

    /// The Host value (RFC 9110 section 7.2): with the origin's port unless it is 443.
    fn host(&self) -> String {
        match self.authority_port.unwrap_or(self.port) {
            443 => self.server_name.clone(),
            port => format!("{}:{port}", self.server_name),
        }
    }
}

/// What a dial learned, for the one who keeps such things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Learned {
    /// Authenticated retry configurations.
    Ech(Vec<u8>),
    /// The server chooses h2 when it is offered.
    H2,
}

/// How a connection was made.
#[derive(Debug, Clone)]
pub struct Dialed {
    /// The address that answered.
    pub address: SocketAddr,
    /// ECH was used, and accepted.
    pub ech_accepted: bool,
    /// The outer name that the network saw.
    pub public_name: Option<String>,
    /// The profile's name.
    pub profile: &'static str,
    /// The WebSocket hello (`http/1.1` alone) or the first-contact one.
    pub websocket_hello: bool,
    /// The ALPN that the server chose.
    pub alpn: Option<String>,
    /// The cipher suite.
    pub cipher: &'static str,
    /// The key exchange group.
    pub group: &'static str,
    /// The TLS session was resumed.
    pub resumed: bool,
    /// An ECH rejection came first, and its retry configurations were used.
    pub retried: bool,
    /// Time to connect.
    pub tcp: Duration,
    /// Time for the TLS handshake.
    pub tls: Duration,
    /// Time for the WebSocket's opening handshake.
    pub websocket: Duration,
    /// What the server announced beyond the deployed protocol.
    pub features: Vec<String>,
}

impl Dialed {
    /// The server takes the extended forms of this mode: requests that are answered, and real half-closes.
    pub(crate) fn extended(&self, mode: Mode) -> bool {
        let feature = match mode {
            Mode::Yamux => "connect",
            Mode::Simple => "simple-open",
        };
        self.features.first().is_some_and(|version| version == "1") && self.announces(feature)
    }

    /// In simple mode both sides say how much they take.
    pub(crate) fn has_simple_window(&self) -> bool {
        self.extended(Mode::Simple) && self.announces(extensions::SIMPLE_WINDOW)
    }

    /// The server sends back what comes for the reserved target, in this mode.
    pub(crate) fn echoes(&self, mode: Mode) -> bool {
        self.extended(mode) && self.announces(extensions::ECHO)
    }

    fn announces(&self, feature: &str) -> bool {
        self.features.iter().any(|word| word == feature)
    }
}

/// What the attempts of one dial have learned from one another.
struct Known {
    ech: Option<Vec<u8>>,
    websocket_hello: bool,
    without: Option<Unsupported>,
}

/// Makes one connection by `plan`, by whichever address leads to the server, and tells `learn` what is worth keeping, whatever
/// the outcome.
pub(crate) async fn dial(
    plan: &DialPlan,
    context: &ClientContext,
    addresses: &Addresses,
    learn: impl Fn(Learned),
) -> Result<(WebSocket, Dialed), Failure> {
    let known = Mutex::new(Known {
        ech: plan.ech.clone(),
        websocket_hello: plan.websocket_hello,
        without: None,
    });
    reach(plan.route(), addresses, |connection| {
        attempt(connection, plan, context, &known, &learn)
    })
    .await
}

/// One attempt: the connection up to the WebSocket. Where the server asks for another hello, it is sent on a new connection to the
/// same address. Four connections at most: the first, one with retry configurations, one with the WebSocket hello, and one
/// without what cannot be done.
async fn attempt(
    mut connection: Connection,
    plan: &DialPlan,
    context: &ClientContext,
    known: &Mutex<Known>,
    learn: &impl Fn(Learned),
) -> Result<(WebSocket, Dialed), Failure> {
    let session_key = format!("{}:{}", plan.server_name, plan.port);
    let address = connection.address;
    let mut retried = false;
    loop {
        let (ech, websocket_hello, without) = {
            let known = known.lock();
            (known.ech.clone(), known.websocket_hello, known.without)
        };
        let mut parameters = ClientParameters {
            profile: plan.profile,
            form: if websocket_hello {
                HelloForm::WebSocket
            } else {
                HelloForm::FirstContact
            },
            server_name: &plan.server_name,
            ech: ech.as_deref().map_or(Ech::Off, Ech::List),
            without,
            session_key: Some(&session_key),
        };
        let secured = secure(connection, plan.route(), context, &mut parameters).await;
        known.lock().without = parameters.without;
        let Secured {
            tls,
            tcp_time,
            tls_time,
        } = match secured {
            Ok(secured) => secured,
            Err(mut failure) => match failure.retry_configs.take() {
                Some(configs) => {
                    learn(Learned::Ech(configs.clone()));
                    if retried {
                        failure
                            .message
                            .push_str("; its own retry configurations were rejected too");
                        return Err(failure);
                    }
                    retried = true;
                    known.lock().ech = Some(configs);
                    connection = connect_to(address, plan.tcp_timeout).await?;
                    continue;
                }
                None => return Err(failure),
            },
        };
        let info = tls.info().clone();
        if info.alpn.as_deref() == Some("h2") {
            learn(Learned::H2);
            if websocket_hello {
                return Err(Failure::new(
                    Layer::Tls,
                    Code::TlsFailed,
                    format!("{address} chose h2, which was not offered"),
                ));
            }
            // As a browser does it: the connection that chose h2 is left, and the WebSocket hello follows at once.
            drop(tls);
            known.lock().websocket_hello = true;
            connection = connect_to(address, plan.tcp_timeout).await?;
            continue;
        }
        let started = Instant::now();
        let (carrier, features) = match timeout(plan.handshake_timeout, upgrade(tls, plan)).await {
            Ok(outcome) => outcome?,
            Err(_) => {
                return Err(Failure::new(
                    Layer::WebSocket,
                    Code::WebSocketTimeout,
                    format!(
                        "{address} did not answer the WebSocket upgrade within {} s",
                        plan.handshake_timeout.as_secs_f32()
                    ),
                ));
            }
        };
        return Ok((
            carrier,
            Dialed {
                address,
                ech_accepted: info.ech_accepted,
                public_name: info.public_name.map(String::from),
                profile: plan.profile.name,
                websocket_hello,
                alpn: info.alpn.map(String::from),
                cipher: info.cipher,
                group: info.group,
                resumed: info.resumed,
                retried,
                tcp: tcp_time,
                tls: tls_time,
                websocket: started.elapsed(),
                features,
            },
        ));
    }
}

/// The WebSocket's opening handshake.
async fn upgrade(mut tls: TlsStream, plan: &DialPlan) -> Result<(WebSocket, Vec<String>), Failure> {
    let template = RequestTemplate::new(plan.profile.websocket_headers).map_err(|error| {
        Failure::new(
            Layer::WebSocket,
            Code::WebSocketProtocol,
            format!("profile {}: {error}", plan.profile.name),
        )
    })?;
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| {
        Failure::new(Layer::WebSocket, Code::WebSocketProtocol, error.to_string())
    })?;
    let request = handshake::Request {
        host: &plan.host(),
        path: &plan.path,
        token: plan.token.as_deref(),
    };
    let mut handshake = ClientHandshake::new(&template, request, key).map_err(|error| {
        Failure::new(
            Layer::WebSocket,
            Code::WebSocketProtocol,
            format!("the upgrade request: {error}"),
        )
    })?;
    let broken = |error: io::Error| {
        let mut failure = Failure::transport(&error);
        failure.message = format!("during the WebSocket upgrade: {}", failure.message);
        failure
    };
    tls.write_all(handshake.request()).await.map_err(broken)?;
    tls.flush().await.map_err(broken)?;
    let mut buffer = [0; 4096];
    loop {
        let n = match tls.read(&mut buffer).await {
            Ok(n) => n,
            // A server that refuses may cut the connection behind its answer.
            Err(error) => match refused(handshake.end()) {
                failure if failure.code == Code::WebSocketProtocol => return Err(broken(error)),
                failure => return Err(failure),
            },
        };
        if n == 0 {
            return Err(refused(handshake.end()));
        }
        if let Some((used, response)) = handshake.receive(&buffer[..n]).map_err(refused)? {
            let features = response
                .header(extensions::FIELD)
                .map(extensions::words)
                .unwrap_or_default();
            let mut carrier = WebSocket::new(tls, Role::Client, buffer[used..n].to_vec());
            if features
                .iter()
                .any(|word| word == extensions::LONG_MESSAGES)
            {
                carrier = carrier.with_long_messages();
            }
            return Ok((carrier, features));
        }
    }
}

/// A refused upgrade in the words of its cause.
fn refused(error: handshake::HandshakeError) -> Failure {
    use handshake::HandshakeError;
    match error {
        HandshakeError::Refused(refusal) => refusal::failure(&refusal),
        HandshakeError::ProtocolNotConfirmed => Failure::new(
            Layer::Token,
            Code::TokenRejected,
            "the server upgraded the connection without confirming the token",
        ),
        other => Failure::new(
            Layer::WebSocket,
            Code::WebSocketProtocol,
            format!("the WebSocket upgrade: {other}"),
        ),
    }
}
