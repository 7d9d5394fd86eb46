//! The web face of the server: a page for everybody, and the upgrade for those with a token.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ech_workers_tls::TlsStream;
use ech_workers_websocket as websocket;
use ech_workers_websocket::handshake::validate_upgrade;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use subtle::{Choice, ConstantTimeEq};

use crate::extensions;
use crate::server::Shared;

/// For the head of a request, and between two of them.
const REQUEST: Duration = Duration::from_secs(15);

/// The page that everybody sees who has no token.
const DECOY: &str = "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Welcome</title></head>\n\
    <body><h1>Welcome</h1><p>This site is being set up. Please come back later.</p></body>\n</html>\n";

/// Answers requests until one of them is an upgrade with a token. Returns the connection and what was read from it behind
/// that request; `None`: there was no such request.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    tls: TlsStream,
    peer: SocketAddr,
) -> Option<(TlsStream, Bytes)> {
    let upgraded: Arc<Mutex<Option<OnUpgrade>>> = Arc::default();
    let service = {
        let (shared, upgraded) = (Arc::clone(shared), Arc::clone(&upgraded));
        service_fn(move |request| {
            let response = respond(&shared, request, &upgraded);
            async move { Ok::<_, Infallible>(response) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(32 * 1024)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!("a request of {peer}: {error}");
        return None;
    }
    let upgrade = upgraded.lock().take()?;
    let parts = upgrade.await.ok()?.downcast::<TokioIo<TlsStream>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

fn respond(
    shared: &Shared,
    mut request: Request<Incoming>,
    upgraded: &Mutex<Option<OnUpgrade>>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if shared.config.path == "/" || shared.config.path == path {
        let headers = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        if let Ok(upgrade) = validate_upgrade(
            request.method().as_str(),
            request.version() == Version::HTTP_11,
            headers,
        ) {
            if let Some(response) = switch(shared, &upgrade) {
                *upgraded.lock() = Some(hyper::upgrade::on(&mut request));
                return response;
            }
            shared.stats.tokens_rejected.add(1);
        }
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => {
            page(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")
        }
        (&Method::GET | &Method::HEAD, _) => {
            let decoy = shared
                .config
                .decoy
                .clone()
                .map_or(Bytes::from_static(DECOY.as_bytes()), Bytes::from);
            page(StatusCode::OK, "text/html; charset=utf-8", decoy)
        }
        _ => page(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "Method Not Allowed\n",
        ),
    }
}

/// The 101 for one who knows a token.
fn switch(
    shared: &Shared,
    upgrade: &websocket::handshake::Upgrade<'_>,
) -> Option<Response<Full<Bytes>>> {
    let offered = upgrade.protocol?;
    // Every token is compared, each in constant time: the time tells nothing but how many there are.
    let known = shared
        .config
        .tokens
        .iter()
        .fold(Choice::from(0), |known, token| {
            known | token.as_bytes().ct_eq(offered)
        });
    if !bool::from(known) {
        return None;
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    for (name, value) in upgrade.response_headers() {
        headers.insert(name, HeaderValue::from_str(value).ok()?);
    }
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_bytes(offered).ok()?,
    );
    headers.insert(
        extensions::FIELD,
        HeaderValue::from_static(extensions::ANNOUNCED),
    );
    Some(response)
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
