//! Judged from outside: takes one command a line on standard input, and answers each with lines on standard output, the
//! last of which is `done`. Bytes are in hexadecimal, `-` stands for none.
//!
//! ```text
//! decode client|server BYTES...                     what a decoder of that role finds in these inputs
//! encode OPCODE FIN PAYLOAD KEY|-                   a frame
//! close CODE|- REASON KEY|-                         a close frame
//! request HOST PATH TOKEN|- NONCE                   the client's upgrade request
//! response TOKEN|- NONCE BYTES...                   what the client makes of a response in these parts
//! upgrade BYTES                                     what the server makes of a request
//! ```

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _, stdin, stdout};

use ech_workers_websocket::handshake::{
    ClientHandshake, Request, RequestTemplate, validate_upgrade,
};
use ech_workers_websocket::{
    Decoder, Event, MAX_HEADER, OpCode, Role, encode_close, encode_header, mask,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    let mut output = stdout().lock();
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["decode", role, ref inputs @ ..] => decode(role, inputs)?,
            ["encode", opcode, fin, payload, key] => encode(opcode, fin, payload, key)?,
            ["close", code, reason, key] => close(code, reason, key)?,
            ["request", host, path, token, nonce] => request(host, path, token, nonce)?,
            ["response", token, nonce, ref parts @ ..] => response(token, nonce, parts)?,
            ["upgrade", bytes] => upgrade(bytes)?,
            _ => return Err(format!("unknown command: {line}").into()),
        };
        writeln!(output, "{answer}done")?;
        output.flush()?;
    }
    Ok(())
}

fn decode(role: &str, inputs: &[&str]) -> Result<String> {
    let mut decoder = Decoder::new(match role {
        "client" => Role::Client,
        _ => Role::Server,
    });
    let mut answer = String::new();
    for input in inputs {
        let mut bytes = from_hex(input)?;
        let mut input = &mut bytes[..];
        while !input.is_empty() {
            let (taken, event) = match decoder.decode(input) {
                Ok(found) => found,
                Err(error) => {
                    writeln!(answer, "error {} {error:?}", error.close_code())?;
                    return Ok(answer);
                }
            };
            match event {
                Some(Event::Data { kind, range, end }) => {
                    writeln!(answer, "data {kind:?} {end} {}", hex(&input[range]))?;
                }
                Some(Event::Ping(payload)) => writeln!(answer, "ping {}", hex(&payload))?,
                Some(Event::Pong(payload)) => writeln!(answer, "pong {}", hex(&payload))?,
                Some(Event::Close(None)) => writeln!(answer, "close 1005 -")?,
                Some(Event::Close(Some(close))) => {
                    writeln!(
                        answer,
                        "close {} {}",
                        close.code,
                        hex(close.reason.as_bytes())
                    )?;
                }
                None => {}
            }
            input = &mut input[taken..];
        }
    }
    Ok(answer)
}

fn encode(opcode: &str, fin: &str, payload: &str, key: &str) -> Result<String> {
    let (mut payload, key) = (from_hex(payload)?, masking_key(key)?);
    let mut frame = vec![0; MAX_HEADER];
    let opcode = OpCode::try_from(opcode.parse::<u8>()?)?;
    let header = encode_header(&mut frame, opcode, fin == "1", payload.len(), key);
    frame.truncate(header);
    if let Some(key) = key {
        mask(&mut payload, key, 0);
    }
    frame.append(&mut payload);
    Ok(format!("frame {}\n", hex(&frame)))
}

fn close(code: &str, reason: &str, key: &str) -> Result<String> {
    let code = (code != "-").then(|| code.parse()).transpose()?;
    let reason = String::from_utf8(from_hex(reason)?)?;
    let mut frame = Vec::new();
    encode_close(&mut frame, code, &reason, masking_key(key)?);
    Ok(format!("frame {}\n", hex(&frame)))
}

fn request(host: &str, path: &str, token: &str, nonce: &str) -> Result<String> {
    let handshake = handshake(host, path, token, nonce)?;
    Ok(format!("request {}\n", hex(handshake.request())))
}

fn response(token: &str, nonce: &str, parts: &[&str]) -> Result<String> {
    let mut handshake = handshake("example.org", "/", token, nonce)?;
    for (index, part) in parts.iter().enumerate() {
        match handshake.receive(&from_hex(part)?) {
            Ok(None) => {}
            Ok(Some((taken, response))) => {
                let protocol = response.protocol.unwrap_or_default();
                return Ok(format!(
                    "accepted {index} {taken} {}\n",
                    hex(protocol.as_bytes())
                ));
            }
            Err(error) => return Ok(format!("refused {error:?}\n")),
        }
    }
    Ok(format!("ended {:?}\n", handshake.end()))
}

fn upgrade(bytes: &str) -> Result<String> {
    let bytes = from_hex(bytes)?;
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    if request.parse(&bytes)?.is_partial() {
        return Err("half a request".into());
    }
    let headers = request
        .headers
        .iter()
        .map(|field| (field.name, field.value));
    let method = request.method.unwrap_or_default();
    Ok(
        match validate_upgrade(method, request.version == Some(1), headers) {
            Ok(upgrade) => {
                let mut answer = format!("upgrade {}\n", hex(upgrade.protocol.unwrap_or_default()));
                for (name, value) in upgrade.response_headers() {
                    writeln!(answer, "field {name} {value}")?;
                }
                answer
            }
            Err(error) => format!("refused {} {error:?}\n", error.status()),
        },
    )
}

fn handshake(host: &str, path: &str, token: &str, nonce: &str) -> Result<ClientHandshake> {
    let request = Request {
        host,
        path,
        token: (token != "-").then_some(token),
    };
    let nonce = from_hex(nonce)?
        .try_into()
        .map_err(|_| "a nonce has 16 bytes")?;
    Ok(ClientHandshake::new(
        &RequestTemplate::default(),
        request,
        nonce,
    )?)
}

fn masking_key(key: &str) -> Result<Option<[u8; 4]>> {
    let key = from_hex(key)?;
    if key.is_empty() {
        return Ok(None);
    }
    Ok(Some(key.try_into().map_err(|_| "a key has 4 bytes")?))
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    if text == "-" {
        return Ok(Vec::new());
    }
    let (digits, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err("half a byte".into());
    }
    digits
        .iter()
        .map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?))
        .collect()
}
