//! Conversations with local programs, byte for byte.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails on the spot"
)]

mod detection;
mod http;
mod properties;
mod socks5;

use ech_workers_proxy::{Error, Negotiation, Progress, Request};

/// What a program sees: everything that was written to it, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    sent: Vec<u8>,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    NeedMore,
    Request(Request),
    Reject(Error),
}

/// Feeds the pieces, as the driver of a socket does.
fn converse<'a>(
    mut negotiation: Negotiation,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Outcome {
    let mut sent = Vec::new();
    let mut yielded: Option<Request> = None;
    for piece in pieces {
        if let Some(request) = &mut yielded {
            if let Err(error) = relay(request, piece) {
                return Outcome {
                    sent,
                    end: End::Reject(error),
                };
            }
            continue;
        }
        let mut input = piece;
        loop {
            match negotiation.advance(input) {
                Progress::NeedMore => break,
                Progress::Send(bytes) => sent.extend(bytes),
                Progress::Request(request) => {
                    yielded = Some(request);
                    break;
                }
                Progress::Reject { reply, error } => {
                    sent.extend(reply);
                    return Outcome {
                        sent,
                        end: End::Reject(error),
                    };
                }
            }
            input = &[];
        }
    }
    Outcome {
        sent,
        end: yielded.map_or(End::NeedMore, End::Request),
    }
}

/// Passes on what arrives behind a request, as far as it belongs to it; the target's bytes gather in `early`.
fn relay(request: &mut Request, piece: &[u8]) -> Result<(), Error> {
    let Some(exchange) = &mut request.exchange else {
        request.early.extend_from_slice(piece);
        return Ok(());
    };
    let (belonging, behind) = piece.split_at(exchange.accept_request(piece)?);
    request.early.extend_from_slice(belonging);
    exchange.hold(behind);
    Ok(())
}

/// The request in `bytes`, which nothing was answered to.
#[track_caller]
fn request(bytes: &[u8]) -> Request {
    match converse(Negotiation::new(None), [bytes]) {
        Outcome {
            sent,
            end: End::Request(request),
        } if sent.is_empty() => request,
        other => panic!("no request: {other:?}"),
    }
}

/// The answer to bytes that are refused, and why.
#[track_caller]
fn rejection(bytes: &[u8]) -> (String, Error) {
    match converse(Negotiation::new(None), [bytes]) {
        Outcome {
            sent,
            end: End::Reject(error),
        } => (String::from_utf8_lossy(&sent).into_owned(), error),
        other => panic!("not rejected: {other:?}"),
    }
}
