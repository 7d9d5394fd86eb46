//! Simple mode: one WebSocket a connection. Texts control, binary messages carry.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ech_workers_proxy::{self as proxy, Target};
use ech_workers_tls::TlsStream;
use ech_workers_websocket::{self as websocket, Decoder, MessageKind, OpCode};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::cause;
use crate::counters::Traffic;
use crate::endpoint::{Endpoint, Socket};
use crate::failure::{Code, Failure, Layer};
use crate::link::{Link, Outgoing};
use crate::panics::caught;
use crate::preamble::Status;
use crate::reply::Reply;
use crate::session::Open;
use crate::stream::StreamEnded;

/// A control text is a word and at most a reason.
const TEXT_MAX: usize = 4096;
/// What may wait for a slow socket before we stop reading from the tunnel.
const BACKLOG_MAX: usize = 256 * 1024;
/// Records before other tasks on the thread get their turn.
const TURN_RECORDS: usize = 16;
/// A deployed server takes a binary message of just these bytes for the end.
const CLOSE: &[u8] = b"CLOSE";

/// How long the phases may take.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// From the request to its answer.
    pub(crate) answer: Duration,
    /// Without a byte either way.
    pub(crate) idle: Duration,
    /// The same with the local side ended.
    pub(crate) half_closed_idle: Duration,
}

/// What becomes of the target's connection on a server.
pub(crate) type Connecting = oneshot::Receiver<Result<TcpStream, (Status, String)>>;

/// Starts a bounded attempt to reach a target.
pub(crate) type Connect = dyn Fn(Target) -> Connecting + Send + Sync;

enum Phase {
    /// Client: CONNECT has been sent.
    Answer(Endpoint, Reply),
    /// Server: CONNECT has not come.
    Request(Arc<Connect>),
    /// Server: the target is being connected.
    Connecting(Connecting),
    Relay(Endpoint),
    /// Nothing is left but to say goodbye.
    Over,
}

enum Turn {
    Idle,
    More,
    Over,
}

/// Drives one connection in simple mode to its end.
pub(crate) struct Driver {
    tls: TlsStream,
    early: Vec<u8>,
    core: Core,
    timer: Pin<Box<Sleep>>,
}

struct Core {
    decoder: Decoder,
    outgoing: Outgoing,
    phase: Phase,
    /// A text that has not ended yet.
    partial: Vec<u8>,
    /// A text to be sent.
    text: Option<Vec<u8>>,
    /// Bytes for the peer, before those of the socket.
    first: Vec<u8>,
    /// Server: bytes for the target that came with the request.
    behind_bar: Vec<u8>,
    pong: Option<websocket::ControlPayload>,
    local_ended: bool,
    remote_ended: bool,
    /// The parting text, and the parting frame, have been put on their way.
    parted: bool,
    closed: bool,
    client: bool,
    limits: Limits,
    active: Instant,
    total: Arc<Traffic>,
}

impl Driver {
    /// A local program's connection.
    pub(crate) fn client(link: Link, open: Open, limits: Limits, total: Arc<Traffic>) -> Self {
        // The bar is always there and nothing follows it: a Worker would mangle bytes in a text.
        let request = format!("CONNECT:{}|", open.target.authority()).into_bytes();
        let mut driver = Self::new(
            link,
            Phase::Answer(
                Endpoint::local(open.socket, open.exchange, open.place),
                open.reply,
            ),
            limits,
            total,
            true,
        );
        driver.core.text = Some(request);
        driver.core.total.up.add(open.early.len() as u64);
        driver.core.first = open.early;
        driver
    }

    /// A client's connection, whose CONNECT is still to be read.
    pub(crate) fn server(
        link: Link,
        connect: Arc<Connect>,
        limits: Limits,
        total: Arc<Traffic>,
    ) -> Self {
        Self::new(link, Phase::Request(connect), limits, total, false)
    }

    fn new(link: Link, phase: Phase, limits: Limits, total: Arc<Traffic>, client: bool) -> Self {
        let timer = Box::pin(tokio::time::sleep(limits.answer));
        Self {
            tls: link.tls,
            early: link.early,
            core: Core {
                decoder: link.decoder,
                outgoing: link.outgoing,
                phase,
                partial: Vec::new(),
                text: None,
                first: Vec::new(),
                behind_bar: Vec::new(),
                pong: None,
                local_ended: false,
                remote_ended: false,
                parted: false,
                closed: false,
                client,
                limits,
                active: Instant::now(),
                total,
            },
            timer,
        }
    }

    /// Runs to the end, or until `stop`. If it was not a clean end, `failed` hears why before anybody else.
    pub(crate) async fn run(mut self, stop: impl Future, failed: impl FnOnce(&Failure)) {
        let outcome = tokio::select! {
            outcome = tokio::task::unconstrained(caught(std::future::poll_fn(|cx| self.poll(cx)))) => {
                outcome.unwrap_or_else(Err)
            }
            _ = stop => Err(Failure::new(Layer::Local, Code::Shutdown, "the connection was ended on this side")),
        };
        if let Err(failure) = &outcome {
            failed(failure);
        }
        match std::mem::replace(&mut self.core.phase, Phase::Over) {
            Phase::Answer(endpoint, reply) => {
                let (failure, cause, reason) = match &outcome {
                    Err(failure) if failure.layer != Layer::Target => (
                        proxy::Failure::TunnelDown,
                        cause::of(failure.code.as_str()),
                        failure.message.as_str(),
                    ),
                    Err(failure) => (proxy::Failure::General, "", failure.message.as_str()),
                    Ok(()) => (proxy::Failure::General, "", "the connection ended"),
                };
                reply.refuse(endpoint, failure, cause, reason);
            }
            Phase::Relay(endpoint) if outcome.is_err() => {
                endpoint.socket.abort(StreamEnded::SessionLost);
            }
            _ => {}
        }
        let Self {
            mut tls, mut core, ..
        } = self;
        let parting = std::future::poll_fn(|cx| core.part(&mut tls, cx));
        // Best effort: the connection may be broken already.
        let _ = tokio::time::timeout(Duration::from_secs(1), parting).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self.turn(cx) {
            Ok(Turn::Idle) => Poll::Pending,
            Ok(Turn::More) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(Turn::Over) => Poll::Ready(Ok(())),
            Err(failure) => Poll::Ready(Err(failure)),
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Turn, Failure> {
        let core = &mut self.core;
        if !self.early.is_empty() {
            let mut early = std::mem::take(&mut self.early);
            core.absorb(&mut early, cx)?;
        }
        if let Phase::Answer(endpoint, _) = &mut core.phase
            && endpoint.socket.poll_abandoned(cx).is_ready()
        {
            return Err(Failure::new(
                Layer::Local,
                Code::Local,
                "nobody waits for the answer any more",
            ));
        }
        core.attend_connect(cx);
        let received = core.receive(&mut self.tls, cx)?;
        let sent = core.send(&mut self.tls, cx)?;
        let flushed = self
            .tls
            .poll_flush(cx)
            .map_err(|error| Failure::transport(&error))?
            .is_ready();
        if core.remote_ended && flushed && core.text.is_none() {
            if let Phase::Relay(endpoint) = &mut core.phase {
                endpoint
                    .end_of_tunnel(cx)
                    .map_err(|error| local_failure(&error))?;
            }
            match &core.phase {
                Phase::Relay(endpoint) if !endpoint.backlog.is_empty() => {}
                Phase::Relay(endpoint) => {
                    endpoint.socket.finish();
                    return Ok(Turn::Over);
                }
                _ => return Ok(Turn::Over),
            }
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            self.timer.as_mut().reset(core.keep_time(cx)?.into());
        }
        Ok(if received || sent {
            Turn::More
        } else {
            Turn::Idle
        })
    }
}

impl Core {
    fn attend_connect(&mut self, cx: &mut Context<'_>) {
        let Phase::Connecting(connecting) = &mut self.phase else {
            return;
        };
        let Poll::Ready(outcome) = Pin::new(connecting).poll(cx) else {
            return;
        };
        match outcome
            .unwrap_or_else(|_| Err((Status::General, "the server is stopping".to_owned())))
        {
            Ok(socket) => {
                self.text = Some(b"CONNECTED".to_vec());
                let mut endpoint = Endpoint::new(Socket::Tcp(socket));
                // A target that is gone already shows it at the first read.
                let _ = endpoint.tell(cx, &std::mem::take(&mut self.behind_bar));
                self.phase = Phase::Relay(endpoint);
                self.active = Instant::now();
            }
            Err((_, reason)) => self.fail(&reason),
        }
    }

    /// Server: tells the client why there will be no relay, and ends.
    fn fail(&mut self, reason: &str) {
        self.text = Some(format!("ERROR:{reason}").into_bytes());
        self.remote_ended = true;
        self.phase = Phase::Over;
    }

    fn receive(&mut self, tls: &mut TlsStream, cx: &mut Context<'_>) -> Result<bool, Failure> {
        for _ in 0..TURN_RECORDS {
            if let Phase::Relay(endpoint) = &mut self.phase {
                endpoint.flush(cx).map_err(|error| local_failure(&error))?;
                if endpoint.backlog.len() > BACKLOG_MAX {
                    return Ok(false);
                }
            }
            if self.remote_ended {
                return Ok(false);
            }
            match tls.poll_open(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(Some(bytes))) => self.absorb(bytes, cx)?,
                Poll::Ready(Ok(None)) => self.remote_ended = true,
                Poll::Ready(Err(error)) => return Err(Failure::transport(&error)),
            }
        }
        Ok(true)
    }

    fn absorb(&mut self, bytes: &mut [u8], cx: &mut Context<'_>) -> Result<(), Failure> {
        let mut at = 0;
        while at < bytes.len() {
            let (used, event) = self.decoder.decode(&mut bytes[at..]).map_err(|error| {
                Failure::new(
                    Layer::WebSocket,
                    Code::WebSocketProtocol,
                    format!("the peer broke RFC 6455: {error}"),
                )
            })?;
            match event {
                Some(websocket::Event::Data {
                    kind: MessageKind::Binary,
                    range,
                    ..
                }) => {
                    self.carry(&bytes[at + range.start..at + range.end], cx)?;
                }
                Some(websocket::Event::Data {
                    kind: MessageKind::Text,
                    range,
                    end,
                }) => {
                    self.partial
                        .extend_from_slice(&bytes[at + range.start..at + range.end]);
                    if self.partial.len() > TEXT_MAX {
                        return Err(Failure::new(
                            Layer::WebSocket,
                            Code::WebSocketProtocol,
                            "the peer sent a text of over 4 KiB",
                        ));
                    }
                    if end {
                        let text = std::mem::take(&mut self.partial);
                        self.heed(&String::from_utf8_lossy(&text), cx)?;
                    }
                }
                Some(websocket::Event::Ping(payload)) => self.pong = Some(payload),
                Some(websocket::Event::Close(_)) => self.remote_ended = true,
                Some(websocket::Event::Pong(_)) | None => {}
            }
            at += used;
        }
        Ok(())
    }

    fn carry(&mut self, payload: &[u8], cx: &mut Context<'_>) -> Result<(), Failure> {
        let Phase::Relay(endpoint) = &mut self.phase else {
            return Ok(());
        };
        self.active = Instant::now();
        let counter = if self.client {
            &self.total.down
        } else {
            &self.total.up
        };
        counter.add(payload.len() as u64);
        endpoint
            .deliver(cx, &[IoSlice::new(payload)])
            .map_err(|error| local_failure(&error))?;
        Ok(())
    }

    fn heed(&mut self, text: &str, cx: &mut Context<'_>) -> Result<(), Failure> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Answer(mut endpoint, reply) => {
                if text == "CONNECTED" {
                    let told = reply.succeed(&mut endpoint, cx);
                    self.active = Instant::now();
                    self.phase = Phase::Relay(endpoint);
                    return told.map_err(|error| local_failure(&error));
                }
                self.phase = Phase::Answer(endpoint, reply);
                if let Some(reason) = text.strip_prefix("ERROR:") {
                    return Err(Failure::new(
                        Layer::Target,
                        Code::TargetFailed,
                        reason.trim(),
                    ));
                }
                if text == "CLOSE" {
                    return Err(Failure::new(
                        Layer::WebSocket,
                        Code::WebSocketClosed,
                        "the server ended the connection",
                    ));
                }
            }
            Phase::Request(connect) => {
                let target = text
                    .strip_prefix("CONNECT:")
                    .and_then(|rest| rest.split_once('|'));
                match target.map(|(target, first)| (target.parse::<Target>(), first)) {
                    Some((Ok(target), first)) => {
                        // Deployed clients send nothing behind the bar; what another one does send is for the target.
                        self.behind_bar = first.as_bytes().to_vec();
                        self.phase = Phase::Connecting(connect(target));
                    }
                    Some((Err(error), _)) => self.fail(&format!("bad target: {error}")),
                    None => self.fail("expected CONNECT:host:port|"),
                }
                return Ok(());
            }
            other => self.phase = other,
        }
        match text {
            "CLOSE" => self.remote_ended = true,
            // Some Workers keep the connection alive with texts of their own.
            "PING" if self.text.is_none() => self.text = Some(b"PONG".to_vec()),
            _ => tracing::debug!(
                "a text of {} bytes that means nothing here was ignored",
                text.len()
            ),
        }
        Ok(())
    }

    fn send(&mut self, tls: &mut TlsStream, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let broken = |error: std::io::Error| Failure::transport(&error);
        for _ in 0..TURN_RECORDS {
            if tls.poll_ready(cx).map_err(broken)?.is_pending() {
                return Ok(false);
            }
            if let Some(payload) = self.pong.take() {
                self.outgoing
                    .send_whole(tls, OpCode::Pong, &payload)
                    .map_err(broken)?;
                continue;
            }
            if let Some(text) = self.text.take() {
                self.outgoing
                    .send_whole(tls, OpCode::Text, &text)
                    .map_err(broken)?;
                continue;
            }
            let Phase::Relay(endpoint) = &mut self.phase else {
                return Ok(false);
            };
            if !self.first.is_empty() {
                let space = self.outgoing.space(tls);
                let n = uncontrolled(&self.first).min(space.len());
                space[..n].copy_from_slice(&self.first[..n]);
                self.first.drain(..n);
                self.outgoing.add(n);
                self.outgoing.send(tls, OpCode::Binary).map_err(broken)?;
                continue;
            }
            if self.local_ended || self.remote_ended {
                return Ok(false);
            }
            let space = self.outgoing.space(tls);
            match endpoint.poll_read(cx, space) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => {
                    self.local_ended = true;
                    self.active = Instant::now();
                    if !self.client || endpoint.is_over() {
                        // The target has ended: all of its bytes are on their way, and CLOSE goes behind them. Or its answer
                        // has.
                        self.remote_ended = true;
                    }
                    return Ok(false);
                }
                Poll::Ready(Ok(n)) => {
                    self.active = Instant::now();
                    let counter = if self.client {
                        &self.total.up
                    } else {
                        &self.total.down
                    };
                    counter.add(n as u64);
                    let whole = uncontrolled(&space[..n]);
                    // What is held back goes first at the next turn.
                    self.first = space[whole..n].to_vec();
                    self.outgoing.add(whole);
                    self.outgoing.send(tls, OpCode::Binary).map_err(broken)?;
                }
                Poll::Ready(Err(error)) => return Err(local_failure(&error)),
            }
        }
        Ok(true)
    }

    /// When to look at the time again; an error when it is up.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> Result<Instant, Failure> {
        let now = Instant::now();
        let (limit, what) = match self.phase {
            Phase::Relay(_) if self.local_ended => (self.limits.half_closed_idle, ""),
            Phase::Relay(_) => (self.limits.idle, "no byte went either way for too long"),
            _ => (
                self.limits.answer,
                "the answer to CONNECT did not come in time",
            ),
        };
        let due = self.active + limit;
        if due > now {
            return Ok(due);
        }
        if self.local_ended && !self.remote_ended {
            self.remote_ended = true;
            cx.waker().wake_by_ref();
            return Ok(now + limit.max(Duration::from_secs(1)));
        }
        Err(Failure::new(Layer::WebSocket, Code::WebSocketTimeout, what))
    }

    /// Says goodbye: CLOSE, as the deployed servers and Workers know it, then the WebSocket's own close.
    fn part(&mut self, tls: &mut TlsStream, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.parted {
            std::task::ready!(tls.poll_ready(cx))?;
            self.outgoing.send_whole(tls, OpCode::Text, CLOSE)?;
            self.parted = true;
        }
        if !self.closed {
            std::task::ready!(tls.poll_ready(cx))?;
            self.outgoing
                .send_whole(tls, OpCode::Close, &1000_u16.to_be_bytes())?;
            self.closed = true;
        }
        tls.poll_close(cx)
    }
}

/// How many of these bytes may go as one binary message: not all, where a deployed server would take them for the end.
fn uncontrolled(bytes: &[u8]) -> usize {
    if bytes == CLOSE {
        CLOSE.len() - 1
    } else {
        bytes.len()
    }
}

fn local_failure(error: &std::io::Error) -> Failure {
    Failure::new(
        Layer::Local,
        Code::Local,
        format!("the local connection broke: {error}"),
    )
}
