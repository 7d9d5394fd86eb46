//! One HTTPS exchange with a resolver: the profile's hello and header fields, HTTP/2 or HTTP/1.1 as the server chooses.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ech_workers_tls::profile::setting;
use ech_workers_tls::{ClientContext, ClientParameters, Ech, HelloForm, Http2, Profile, TlsStream};
use h2::client::ResponseFuture;
use http::response::Parts;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::client::addresses::Addresses;
use crate::client::connect::{Connection, Destination, Secured, reach, secure};
use crate::client::opening::BrowserOpening;
use crate::failure::{Code, Failure, Layer};

/// What a connection's window begins with (RFC 9113 section 6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;

/// What to ask whom.
#[derive(Debug, Clone)]
pub struct FetchPlan {
    /// The server's name, or its address.
    pub server_name: String,
    /// Its port.
    pub port: u16,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
    /// Path and query.
    pub path: String,
    /// POST with a body, or GET.
    pub post: bool,
    /// The body of a POST.
    pub body: Bytes,
    /// Whose hello and header fields to send.
    pub profile: &'static Profile,
    /// Offer `http/1.1` alone.
    pub http1_only: bool,
    /// For all of it.
    pub timeout: Duration,
    /// The most that is read of the answer's body, in bytes.
    pub max_body: usize,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The HTTP status.
    pub status: u16,
    /// The header fields.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// It came over HTTP/2.
    pub http2: bool,
    /// From the first packet to the last.
    pub elapsed: Duration,
}

/// Makes the exchange.
pub(crate) async fn fetch(
    plan: &FetchPlan,
    context: &ClientContext,
    addresses: &Addresses,
) -> Result<Fetched, Failure> {
    // All of it has one limit.
    let route = Destination {
        addresses: &plan.addresses,
        port: plan.port,
        tcp_timeout: plan.timeout,
        handshake_timeout: plan.timeout,
    };
    let exchanging = reach(route, addresses, |connection| {
        exchange(connection, route, plan, context)
    });
    match timeout(plan.timeout, exchanging).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(
            Layer::Resolver,
            Code::HttpFailed,
            format!(
                "{} did not answer within {} s",
                plan.server_name,
                plan.timeout.as_secs_f32()
            ),
        )),
    }
}

async fn exchange(
    connection: Connection,
    route: Destination<'_>,
    plan: &FetchPlan,
    context: &ClientContext,
) -> Result<Fetched, Failure> {
    let started = Instant::now();
    let session_key = format!("{}:{}", plan.server_name, plan.port);
    let mut parameters = ClientParameters {
        profile: plan.profile,
        form: if plan.http1_only {
            HelloForm::WebSocket
        } else {
            HelloForm::FirstContact
        },
        server_name: &plan.server_name,
        ech: Ech::Off,
        without: None,
        session_key: Some(&session_key),
    };
    let tcp_time = connection.tcp_time;
    let Secured { tls, .. } = secure(connection, route, context, &mut parameters).await?;
    let http2 = tls.info().alpn.as_deref() == Some("h2");
    let response = if http2 {
        over_http2(tls, plan).await
    } else {
        over_http1(tls, plan).await
    };
    let (status, headers, body) = response.map_err(|error| match error {
        Trouble::TooLarge => Failure::new(
            Layer::Resolver,
            Code::HttpTooLarge,
            format!(
                "{} answered with more than {} bytes",
                plan.server_name, plan.max_body
            ),
        ),
        Trouble::Failed(why) => Failure::new(
            Layer::Resolver,
            Code::HttpFailed,
            format!("the exchange with {} failed: {why}", plan.server_name),
        ),
    })?;
    Ok(Fetched {
        status,
        headers,
        body,
        http2,
        elapsed: tcp_time + started.elapsed(),
    })
}

enum Trouble {
    TooLarge,
    Failed(String),
}

impl From<hyper::Error> for Trouble {
    fn from(error: hyper::Error) -> Self {
        // hyper's own text is a category; the cause is one below.
        let cause = std::error::Error::source(&error)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Self::Failed(format!("{error}{cause}"))
    }
}

impl From<h2::Error> for Trouble {
    fn from(error: h2::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

type Answer = (u16, Vec<(String, String)>, Bytes);

async fn over_http1(tls: TlsStream, plan: &FetchPlan) -> Result<Answer, Trouble> {
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(tls))
        .await?;
    let request = request(plan, Version::Http1)?.map(Full::new);
    alongside(connection, async move {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, plan.max_body)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Trouble::TooLarge
                } else {
                    Trouble::Failed(error.to_string())
                }
            })?;
        Ok(answer(&parts, body.to_bytes()))
    })
    .await
}

async fn over_http2(tls: TlsStream, plan: &FetchPlan) -> Result<Answer, Trouble> {
    let browser = &plan.profile.http2;
    let (mut sender, connection) = http2_builder(browser)
        .handshake(BrowserOpening::new(tls, browser))
        .await?;
    let (parts, body) = request(plan, Version::Http2)?.into_parts();
    alongside(connection, async move {
        let (response, mut stream) =
            sender.send_request(Request::from_parts(parts, ()), body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        receive_http2(response, plan.max_body).await
    })
    .await
}

/// h2 with what the browser's opening promises.
pub(crate) fn http2_builder(browser: &Http2) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        // Whatever the browser's settings say: an answer that nobody asked for ends the exchange.
        .enable_push(false)
        .initial_connection_window_size(DEFAULT_WINDOW + browser.window_update)
        .initial_stream_id(browser.first_stream);
    if let Some(size) = browser.setting(setting::HEADER_TABLE_SIZE) {
        builder.header_table_size(size);
    }
    if let Some(size) = browser.setting(setting::INITIAL_WINDOW_SIZE) {
        builder.initial_window_size(size);
    }
    if let Some(size) = browser.setting(setting::MAX_FRAME_SIZE) {
        builder.max_frame_size(size);
    }
    builder
}

async fn receive_http2(response: ResponseFuture, max_body: usize) -> Result<Answer, Trouble> {
    let (parts, mut body) = response.await?.into_parts();
    let mut whole = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        if whole.len() + piece.len() > max_body {
            return Err(Trouble::TooLarge);
        }
        whole.extend_from_slice(&piece);
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok(answer(&parts, whole.freeze()))
}

/// Drives the connection while the exchange lasts.
async fn alongside<E: Into<Trouble>>(
    connection: impl Future<Output = Result<(), E>>,
    exchange: impl Future<Output = Result<Answer, Trouble>>,
) -> Result<Answer, Trouble> {
    tokio::pin!(connection, exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.into()),
        },
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// The request with the profile's header fields, in its order.
fn request(plan: &FetchPlan, version: Version) -> Result<Request<Bytes>, Trouble> {
    let host = if plan.server_name.contains(':') {
        format!("[{}]", plan.server_name)
    } else {
        plan.server_name.clone()
    };
    let authority = if plan.port == 443 {
        host
    } else {
        format!("{host}:{}", plan.port)
    };
    let (method, fields, body) = if plan.post {
        (
            Method::POST,
            plan.profile.dns_post_headers,
            plan.body.clone(),
        )
    } else {
        (Method::GET, plan.profile.dns_get_headers, Bytes::new())
    };
    let (uri, of_the_other) = match version {
        Version::Http1 => (plan.path.clone(), &["TE"][..]),
        Version::Http2 => (
            format!("https://{authority}{}", plan.path),
            &["Host", "Connection"][..],
        ),
    };
    let mut builder = Request::builder().method(method).uri(uri);
    for (name, value) in fields
        .iter()
        .filter(|(name, _)| !of_the_other.contains(name))
    {
        let value = value
            .replace("{host}", &authority)
            .replace("{length}", &body.len().to_string());
        builder = builder.header(*name, value);
    }
    builder
        .body(body)
        .map_err(|error| Trouble::Failed(format!("the request: {error}")))
}

fn answer(parts: &Parts, body: Bytes) -> Answer {
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    (parts.status.as_u16(), headers, body)
}
