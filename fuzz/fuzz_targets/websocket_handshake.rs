//! Whatever a server answers to the upgrade request, however it is cut: no panic, and the same result.
#![no_main]

use std::mem::discriminant;

use ech_workers_websocket::handshake::{
    ClientHandshake, HandshakeError, MAX_REFUSAL_BODY, Request, RequestTemplate, Response,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The first byte: whether a token was sent, and the length of the pieces.
    let Some((&options, bytes)) = input.split_first() else {
        return;
    };
    let token = (options & 1 == 1).then_some("token");
    let piece = 1 + usize::from(options >> 1);
    match (
        receive(token, bytes, bytes.len().max(1)),
        receive(token, bytes, piece),
    ) {
        (Ok(whole), Ok(cut)) => assert_eq!(whole, cut),
        (Err(HandshakeError::Refused(whole)), Err(HandshakeError::Refused(cut))) => {
            assert_eq!(whole.status, cut.status);
            assert_eq!(whole.location(), cut.location());
            assert!(whole.body.len() <= 3 * MAX_REFUSAL_BODY);
        }
        // What an error quotes of the answer depends on how much of it had come.
        (Err(whole), Err(cut)) => assert_eq!(discriminant(&whole), discriminant(&cut)),
        (whole, cut) => panic!("{whole:?} as a whole, {cut:?} in pieces of {piece}"),
    }
});

/// The response and where it ends, or why there is none.
fn receive(
    token: Option<&str>,
    bytes: &[u8],
    piece: usize,
) -> Result<(usize, Response), HandshakeError> {
    let request = Request {
        host: "a.test",
        path: "/",
        token,
    };
    let mut handshake = ClientHandshake::new(&RequestTemplate::default(), request, [0; 16])
        .expect("a valid request");
    let mut position = 0;
    for piece in bytes.chunks(piece) {
        if let Some((taken, response)) = handshake.receive(piece)? {
            assert!(taken <= piece.len());
            return Ok((position + taken, response));
        }
        position += piece.len();
    }
    Err(handshake.end())
}
