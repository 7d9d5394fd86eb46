//! One HTTPS exchange with a resolver: the profile's hello, HTTP/2 or HTTP/1.1 as the server chooses.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ech_workers_tls::{ClientContext, ClientParameters, Ech, HelloForm, Profile, TlsStream};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use crate::connect::{Connected, Route, connect};
use crate::failure::{Failure, Layer};

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
    /// Header fields in their order, but for Host, which goes first.
    pub headers: Vec<(String, String)>,
    /// The body of a POST.
    pub body: Bytes,
    /// Whose hello to send.
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
pub(crate) async fn fetch(plan: &FetchPlan, context: &ClientContext) -> Result<Fetched, Failure> {
    match timeout(plan.timeout, exchange(plan, context)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(
            Layer::Resolver,
            "http-failed",
            format!(
                "{} did not answer within {} s",
                plan.server_name,
                plan.timeout.as_secs_f32()
            ),
        )),
    }
}

async fn exchange(plan: &FetchPlan, context: &ClientContext) -> Result<Fetched, Failure> {
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
    // All of it has one limit, that of `fetch`.
    let route = Route {
        addresses: &plan.addresses,
        port: plan.port,
        tcp_timeout: plan.timeout,
        handshake_timeout: plan.timeout,
    };
    let Connected { tls, .. } = connect(route, context, &mut parameters).await?;
    let http2 = tls.info().alpn.as_deref() == Some("h2");
    let response = if http2 {
        over_http2(tls, plan).await
    } else {
        over_http1(tls, plan).await
    };
    let (status, headers, body) = response.map_err(|error| match error {
        Trouble::TooLarge => Failure::new(
            Layer::Resolver,
            "http-too-large",
            format!(
                "{} answered with more than {} bytes",
                plan.server_name, plan.max_body
            ),
        ),
        Trouble::Failed(why) => Failure::new(
            Layer::Resolver,
            "http-failed",
            format!("the exchange with {} failed: {why}", plan.server_name),
        ),
    })?;
    Ok(Fetched {
        status,
        headers,
        body,
        http2,
        elapsed: started.elapsed(),
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

type Answer = (u16, Vec<(String, String)>, Bytes);

async fn over_http1(tls: TlsStream, plan: &FetchPlan) -> Result<Answer, Trouble> {
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(tls))
        .await?;
    let request = request(plan, false)?;
    alongside(connection, async move {
        collect(sender.send_request(request).await?, plan.max_body).await
    })
    .await
}

async fn over_http2(tls: TlsStream, plan: &FetchPlan) -> Result<Answer, Trouble> {
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(16 * 1024)
        .handshake(TokioIo::new(tls))
        .await?;
    let request = request(plan, true)?;
    alongside(connection, async move {
        collect(sender.send_request(request).await?, plan.max_body).await
    })
    .await
}

/// Drives the connection while the exchange lasts.
async fn alongside(
    connection: impl Future<Output = hyper::Result<()>>,
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

fn request(plan: &FetchPlan, http2: bool) -> Result<Request<Full<Bytes>>, Trouble> {
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
    let mut builder = Request::builder().method(if plan.post { Method::POST } else { Method::GET });
    builder = if http2 {
        builder.uri(format!("https://{authority}{}", plan.path))
    } else {
        builder.uri(&plan.path).header("host", authority)
    };
    for (name, value) in &plan.headers {
        builder = builder.header(name, value);
    }
    builder
        .body(Full::new(if plan.post {
            plan.body.clone()
        } else {
            Bytes::new()
        }))
        .map_err(|error| Trouble::Failed(format!("the request: {error}")))
}

async fn collect(response: http::Response<Incoming>, max_body: usize) -> Result<Answer, Trouble> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, max_body)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                Trouble::TooLarge
            } else {
                Trouble::Failed(error.to_string())
            }
        })?;
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
    Ok((parts.status.as_u16(), headers, body.to_bytes()))
}
