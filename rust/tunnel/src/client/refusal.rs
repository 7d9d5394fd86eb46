//! A refused upgrade in the words of its cause: the tunnel's server, or something that stands before it.

use std::time::{Duration, SystemTime};

use ech_workers_websocket::handshake::Refusal;

use crate::extensions;
use crate::failure::{Code, Failure, Layer};

/// No server is waited for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// How much of the body, and of a redirect's address, is shown.
const SHOWN: usize = 256;

/// Why the upgrade was refused. Where the answer bears the mark of a CDN, it says nothing of the token.
pub(crate) fn failure(refusal: &Refusal) -> Failure {
    let mut what = format!("{} {}", refusal.status, refusal.reason.escape_debug());
    what.truncate(what.trim_end().len());
    let cdn_code = cdn_code(&refusal.body);
    if let Some(code) = cdn_code {
        what.push_str(&format!(" with its error code {code}"));
    }
    let (layer, code, message) = match refusal.status {
        _ if refusal.header("cf-mitigated").is_some() => (
            Layer::WebSocket,
            Code::CdnChallenge,
            format!(
                "the CDN before the server wants a browser to solve a challenge: it answered {what}"
            ),
        ),
        503 if refusal.header(extensions::FIELD) == Some(extensions::FULL) => (
            Layer::WebSocket,
            Code::ServerFull,
            "the server has as many sessions as it may have, and ends none that has streams for another one of the same client"
                .to_owned(),
        ),
        429 | 503 => (
            Layer::WebSocket,
            Code::WebSocketBusy,
            format!(
                "the server, or a CDN before it, takes no more requests for now: the answer is {what}"
            ),
        ),
        // Those from 520 on are Cloudflare's own.
        502 | 504 | 520..=530 => (
            Layer::WebSocket,
            Code::CdnOrigin,
            format!(
                "a CDN or a web server before the tunnel's server does not reach it: it answered {what}"
            ),
        ),
        _ if cdn_code.is_some_and(|code| code >= 1000) || is_block_page(refusal) => (
            Layer::WebSocket,
            Code::CdnRefused,
            format!("the CDN before the server refuses the connection: it answered {what}"),
        ),
        300..=399 if refusal.location().is_some() => (
            Layer::WebSocket,
            Code::WebSocketRedirect,
            format!(
                "something before the server answered the upgrade with a redirect: {what}, to {}",
                excerpt(refusal.location().unwrap_or_default()),
            ),
        ),
        // A deployed server shows its decoy page, a Worker says 4xx.
        200 | 400 | 401 | 403 | 404 | 405 => (
            Layer::Token,
            Code::TokenRejected,
            format!("the server does not accept this token (or this path): it answered {what}"),
        ),
        _ => (
            Layer::WebSocket,
            Code::WebSocketStatus,
            format!("the server answered the upgrade with {what}"),
        ),
    };
    let retry_after = retry_after(refusal);
    let message = match retry_after {
        Some(wait) => format!("{message}; it asks to wait {} s", wait.as_secs()),
        None => message,
    };
    let mut detail = String::new();
    for name in ["Server", "CF-Ray", "Location"] {
        if let Some(value) = refusal.header(name) {
            detail.push_str(&format!("{name}: {}; ", excerpt(value)));
        }
    }
    detail.push_str(shortened(&refusal.body));
    Failure {
        retry_after,
        ..Failure::new(layer, code, message).with_detail(detail)
    }
}

/// The number in Cloudflare's `error code: 1020`.
fn cdn_code(body: &str) -> Option<u16> {
    let (_, rest) = body.split_once("error code: ")?;
    let end = rest.find(|character: char| !character.is_ascii_digit());
    rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
}

/// Cloudflare's page for those whom its rules keep out. The answers of a Worker have its marks in the head too, but not a page
/// that speaks of Cloudflare; CloudFront and Akamai put themselves in the place of the server's name when an answer is their own.
fn is_block_page(refusal: &Refusal) -> bool {
    if !matches!(refusal.status, 400..=499) {
        return false;
    }
    let server = refusal.header("server").unwrap_or_default();
    ["CloudFront", "AkamaiGHost"].contains(&server)
        || refusal.header("cf-ray").is_some()
            && ["Cloudflare", "cloudflare"]
                .iter()
                .any(|name| refusal.body.contains(name))
}

/// Retry-After in either of its forms (RFC 9110 section 10.2.3).
fn retry_after(refusal: &Refusal) -> Option<Duration> {
    let value = refusal.header("retry-after")?;
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            // By the clock of whoever wrote it, if that is told.
            let now = refusal
                .header("date")
                .and_then(|date| httpdate::parse_http_date(date).ok())
                .unwrap_or_else(SystemTime::now);
            let then = httpdate::parse_http_date(value).ok()?;
            then.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The beginning of a field's value, printable.
fn excerpt(value: &str) -> String {
    shortened(value).escape_debug().to_string()
}

fn shortened(text: &str) -> &str {
    (0..=SHOWN.min(text.len()))
        .rev()
        .find_map(|end| text.get(..end))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ech_workers_websocket::handshake::{
        ClientHandshake, HandshakeError, Request, RequestTemplate,
    };

    use super::*;

    /// The failure for an answer with these field lines.
    #[track_caller]
    fn failed(status: &str, fields: &[&str], body: &str) -> Failure {
        let request = Request {
            host: "a.test",
            path: "/",
            token: None,
        };
        let mut handshake =
            ClientHandshake::new(&RequestTemplate::default(), request, [0; 16]).unwrap();
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n{body}");
        match handshake.receive(answer.as_bytes()) {
            Err(HandshakeError::Refused(refusal)) => failure(&refusal),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_cdns_own_answers_are_not_called_a_wrong_token() {
        const RAY: &str = "CF-Ray: 8a-AMS";
        for (status, fields, body, code) in [
            (
                "403 Forbidden",
                &[RAY, "cf-mitigated: challenge"][..],
                "<html>Just a moment...",
                Code::CdnChallenge,
            ),
            (
                "403 Forbidden",
                &[RAY],
                "error code: 1020",
                Code::CdnRefused,
            ),
            (
                "403 Forbidden",
                &[RAY],
                "<title>Attention Required! | Cloudflare</title>",
                Code::CdnRefused,
            ),
            (
                "403 Forbidden",
                &["Server: CloudFront"],
                "",
                Code::CdnRefused,
            ),
            ("500 ", &[], "error code: 1101", Code::CdnRefused),
            (
                "429 Too Many Requests",
                &[RAY],
                "error code: 1015",
                Code::WebSocketBusy,
            ),
            ("503 Service Unavailable", &[], "", Code::WebSocketBusy),
            (
                "503 Service Unavailable",
                &["x-stream-extensions: full"],
                "",
                Code::ServerFull,
            ),
            ("522 ", &[RAY], "error code: 522", Code::CdnOrigin),
            ("530 ", &[RAY], "error code: 1033", Code::CdnOrigin),
            ("502 Bad Gateway", &["Server: nginx"], "", Code::CdnOrigin),
            (
                "302 Found",
                &["Location: https://login.test/"],
                "",
                Code::WebSocketRedirect,
            ),
            // Without a mark in the body a 4xx through Cloudflare is the Worker's.
            (
                "403 Forbidden",
                &[RAY, "Server: cloudflare"],
                "Forbidden",
                Code::TokenRejected,
            ),
            ("200 OK", &[], "<html>", Code::TokenRejected),
            ("418 ", &[], "", Code::WebSocketStatus),
            ("304 Not Modified", &[], "", Code::WebSocketStatus),
        ] {
            let failure = failed(status, fields, body);
            assert_eq!(failure.code, code, "{status} {fields:?} {body}");
            let token = code == Code::TokenRejected;
            assert_eq!(failure.layer == Layer::Token, token, "{status}");
        }
    }

    #[test]
    fn the_message_has_the_code_and_where_a_redirect_leads() {
        let failure = failed("403 Forbidden", &["CF-Ray: 8a-AMS"], "error code: 1020");
        assert!(
            failure
                .message
                .ends_with("it answered 403 Forbidden with its error code 1020")
        );
        assert_eq!(
            failure.detail.as_deref(),
            Some("CF-Ray: 8a-AMS; error code: 1020")
        );
        let failure = failed("302 Found", &["Location: https://login.test/?next=/ws"], "");
        assert!(
            failure
                .message
                .ends_with(": 302 Found, to https://login.test/?next=/ws"),
            "{failure}"
        );
        let long = format!("Location: /{}", "a".repeat(9000));
        assert!(failed("302 Found", &[&long], "").message.len() < 400);
    }

    #[test]
    fn the_time_to_wait_is_read_in_both_forms_and_bounded() {
        let busy = |fields: &[&str]| failed("429 Too Many Requests", fields, "").retry_after;
        assert_eq!(busy(&[]), None);
        assert_eq!(busy(&["Retry-After: 120"]), Some(Duration::from_secs(120)));
        assert_eq!(busy(&["Retry-After: soon"]), None);
        assert_eq!(busy(&["Retry-After: -1"]), None);
        assert_eq!(busy(&["Retry-After: 99999999999"]), Some(RETRY_AFTER_MAX));
        let date = "Date: Wed, 21 Oct 2015 07:28:00 GMT";
        assert_eq!(
            busy(&[date, "Retry-After: Wed, 21 Oct 2015 07:28:30 GMT"]),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            busy(&[date, "Retry-After: Wed, 21 Oct 2015 07:27:30 GMT"]),
            Some(Duration::ZERO)
        );
        let failure = failed("429 Too Many Requests", &["Retry-After: 120"], "");
        assert!(
            failure.message.ends_with("; it asks to wait 120 s"),
            "{failure}"
        );
    }
}
