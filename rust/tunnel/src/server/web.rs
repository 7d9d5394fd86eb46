//! The web face of the server: a page for everybody, and the upgrade for those with a token.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ech_workers_sync::Mutex;
use ech_workers_tls::TlsStream;
use ech_workers_websocket as websocket;
use ech_workers_websocket::handshake::validate_upgrade;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::extensions;
use crate::failure::{Code, Layer};
use crate::server::ServerState;
use crate::server::admission::Place;
use crate::server::patience::Patient;
use crate::server::served::Served;
use crate::server::tokens::{Holder, Tokens};

/// For the head of a request, and between two of them.
const REQUEST: Duration = Duration::from_secs(15);

/// The page that everybody sees who has no token.
const DECOY: &str = "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Welcome</title></head>\n\
    <body><h1>Welcome</h1><p>This site is being set up. Please come back later.</p></body>\n</html>\n";

/// A connection whose client has shown a token.
pub(crate) struct Upgraded {
    pub(crate) tls: TlsStream,
    /// What was read behind the request.
    pub(crate) early: Bytes,
    /// Its place among the sessions.
    pub(crate) place: Place,
}

/// An upgrade that was answered with 101 and is to take place, with its place among the sessions.
type Switching = Mutex<Option<(OnUpgrade, Place)>>;

/// What the web face is made of.
pub(crate) struct Face {
    /// Where the WebSocket is; `/` means every path.
    path: String,
    /// The page that everybody sees who has no token; all answers share it.
    page: Bytes,
    pub(crate) tokens: Tokens,
    /// `/healthz` is answered, by which this server can be told from others.
    healthz: bool,
}

/// What the web face is made with.
#[derive(Debug, Clone)]
pub struct FaceConfig {
    /// Where the WebSocket is; `/` means every path.
    pub path: String,
    /// Those who may pass, each a Sec-WebSocket-Protocol, with what the operator calls it.
    pub tokens: Vec<(String, String)>,
    /// The page for everybody else.
    pub decoy: Option<Vec<u8>>,
    /// Whether `/healthz` is answered.
    pub healthz: bool,
}

impl Face {
    /// In the place of `before`, whose tokens keep their counters.
    ///
    /// # Errors
    /// A token is too long.
    pub(crate) fn new(config: FaceConfig, before: &Tokens) -> io::Result<Self> {
        Ok(Self {
            path: config.path,
            tokens: Tokens::new(&config.tokens, before)?,
            page: config
                .decoy
                .map_or(Bytes::from_static(DECOY.as_bytes()), Bytes::from),
            healthz: config.healthz,
        })
    }
}

/// Answers requests until one of them is an upgrade with a token; `None`: there was no such request.
pub(crate) async fn serve(
    shared: &Arc<ServerState>,
    tls: TlsStream,
    peer: SocketAddr,
) -> Option<Upgraded> {
    let switching: Arc<Switching> = Arc::default();
    let service = {
        let (shared, switching) = (Arc::clone(shared), Arc::clone(&switching));
        service_fn(move |request| {
            let response = respond(&shared, request, peer, &switching);
            async move { Ok::<_, Infallible>(response) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(32 * 1024)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(Patient::new(tls)), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(
            layer = Layer::WebSocket.name(),
            code = Code::HttpFailed.as_str(),
            "a request of {peer}: {error}"
        );
        return None;
    }
    let (upgrade, place) = switching.lock().take()?;
    let parts = upgrade.await.ok()?.downcast::<TokioIo<Patient>>().ok()?;
    Some(Upgraded {
        tls: parts.io.into_inner().into_inner(),
        early: parts.read_buf,
        place,
    })
}

fn respond(
    shared: &ServerState,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    switching: &Switching,
) -> Response<Full<Bytes>> {
    if !has_host(&request) {
        return text(StatusCode::BAD_REQUEST, "Bad Request\n");
    }
    let face = shared.face();
    let path = request.uri().path();
    if face.path == "/" || face.path == path {
        let headers = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        if let Ok(upgrade) = validate_upgrade(
            request.method().as_str(),
            request.version() == Version::HTTP_11,
            headers,
        ) {
            if let Some((response, holder)) = switch(&face, &upgrade) {
                let Some(place) = shared.rooms.sessions.enter(peer.ip()) else {
                    return full();
                };
                place.serve(Served::new(peer, holder));
                *switching.lock() = Some((hyper::upgrade::on(&mut request), place));
                return response;
            }
            shared.stats.tokens_rejected.add(1);
            tracing::debug!(
                layer = Layer::Token.name(),
                code = Code::TokenRejected.as_str(),
                "{peer} asks for a session without a token that is accepted: it is shown a web page"
            );
        }
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") if face.healthz => text(StatusCode::OK, "ok\n"),
        (&Method::GET | &Method::HEAD, _) => page(
            StatusCode::OK,
            "text/html; charset=utf-8",
            face.page.clone(),
        ),
        _ => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            // RFC 9110 section 15.5.6.
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
    }
}

/// Whether a request names its host as it has to: HTTP/1.1 requires exactly one valid Host field, HTTP/1.0 allows none
/// (RFC 9112 section 3.2).
fn has_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_host(host),
        (None, _) => request.version() == Version::HTTP_10,
        (Some(_), Some(_)) => false,
    }
}

/// `uri-host [ ":" port ]`, where the host is not empty: there is none without one in `https`.
fn is_host(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|text| {
        !text.contains('@')
            && text
                .trim()
                .parse::<Authority>()
                .is_ok_and(|host| !host.host().is_empty())
    })
}

/// The 101 for one who knows a token.
fn switch(
    face: &Face,
    upgrade: &websocket::handshake::Upgrade<'_>,
) -> Option<(Response<Full<Bytes>>, Arc<Holder>)> {
    let offered = upgrade.protocol?;
    let holder = face.tokens.find(offered)?;
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
    Some((response, holder))
}

/// For one with a token, when there are as many sessions as there may be. It is told that this is the reason.
fn full() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable\n");
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
    response.headers_mut().insert(
        extensions::FIELD,
        HeaderValue::from_static(extensions::FULL),
    );
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", body)
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(version: Version, hosts: &[&str]) -> bool {
        let mut request = Request::builder().version(version).uri("/");
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        has_host(&request.body(()).unwrap())
    }

    #[test]
    fn a_request_names_one_host() {
        for host in [
            "example.com",
            "example.com:8443",
            "[2001:db8::1]:443",
            "192.0.2.1",
        ] {
            assert!(allowed(Version::HTTP_11, &[host]), "{host}");
        }
        for hosts in [
            &[][..],
            &[""],
            &["a", "a"],
            &["a", "b"],
            &["a b"],
            &["user@a"],
            &["a/b"],
            &[":443"],
        ] {
            assert!(!allowed(Version::HTTP_11, hosts), "{hosts:?}");
        }
        assert!(allowed(Version::HTTP_10, &[]));
        assert!(!allowed(Version::HTTP_10, &["a", "b"]));
    }
}
