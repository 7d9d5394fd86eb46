//! Both ends of rust/tls for BoringSSL's own test runner (`make tls-conformance`): one process a test, told by its options
//! what to be and what to expect.
//!
//! What it does is fixed by the runner: connect to it, send the eight bytes that name this process, make a handshake as
//! client or server, and send back all that comes with every bit turned over, until the peer announces its end. An option
//! that it does not know ends it with 89, which the runner counts as not implemented.

use std::error::Error;
use std::io::Read as _;
use std::net::Shutdown;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ech_workers_tls::ech::EchKey;
use ech_workers_tls::{
    ClientContext, ClientParameters, Ech, HelloForm, Identity, Profile, ServerContext, TlsStream,
    Trust, accept, connect,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What the runner takes for "not implemented".
const UNIMPLEMENTED: u8 = 89;

/// How long the runner may be silent after a failure.
const LINGER: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Options {
    server: bool,
    port: u16,
    ipv6: bool,
    shim_id: u64,
    certificate: Option<String>,
    key: Option<String>,
    trusted: Option<String>,
    host_name: Option<String>,
    resumptions: usize,
    writes_first: bool,
    shuts_down: bool,
    check_close_notify: bool,
    expect_session_miss: bool,
    expect_server_name: Option<String>,
    expect_ech_accept: bool,
    expect_retry: Option<bool>,
    ech_list: Option<Vec<u8>>,
    /// Configuration, private key and whether it is told of, each in the base64 of the option.
    ech_keys: Vec<[String; 3]>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "-is-handshaker-supported") {
        println!("No");
        return ExitCode::SUCCESS;
    }
    let options = match Options::read(words) {
        Ok(options) => options,
        Err(unknown) => {
            eprintln!("not implemented: {unknown}");
            return ExitCode::from(UNIMPLEMENTED);
        }
    };
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    /// The options, or the first one that is not known.
    fn read(words: Vec<String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .ok_or_else(|| format!("{word} without a value"))
            };
            let number = |text: String| text.parse::<u64>().map_err(|_| text);
            match word.as_str() {
                "-server" => options.server = true,
                "-port" => options.port = u16::try_from(number(value()?)?).unwrap_or(0),
                "-ipv6" => options.ipv6 = true,
                "-shim-id" => options.shim_id = number(value()?)?,
                "-cert-file" => options.certificate = Some(value()?),
                "-key-file" => options.key = Some(value()?),
                "-trust-cert" => options.trusted = Some(value()?),
                "-host-name" => options.host_name = Some(value()?),
                "-resume-count" => options.resumptions = number(value()?)? as usize,
                "-shim-writes-first" => options.writes_first = true,
                "-shim-shuts-down" => options.shuts_down = true,
                "-check-close-notify" => options.check_close_notify = true,
                "-expect-session-miss" => options.expect_session_miss = true,
                "-expect-server-name" => options.expect_server_name = Some(value()?),
                "-expect-ech-accept" => options.expect_ech_accept = true,
                "-expect-hrr" => options.expect_retry = Some(true),
                "-expect-no-hrr" => options.expect_retry = Some(false),
                "-ech-config-list" => options.ech_list = Some(base64(&value()?)?),
                "-ech-server-config" => {
                    let key = [value()?, String::new(), String::new()];
                    options.ech_keys.push(key);
                }
                "-ech-server-key" => options.last_ech_key(&word)?[1] = value()?,
                "-ech-is-retry-config" => options.last_ech_key(&word)?[2] = value()?,
                // It is never otherwise.
                "-async" | "-verify-peer" => {}
                // This may be less: there is no other version here.
                "-min-version" => drop(value()?),
                "-max-version" | "-expect-version" if number(value()?)? == 0x0304 => {}
                _ => return Err(word),
            }
        }
        Ok(options)
    }

    fn last_ech_key(&mut self, word: &str) -> Result<&mut [String; 3], String> {
        self.ech_keys.last_mut().ok_or_else(|| word.to_owned())
    }
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|error| error.to_string())
}

/// The keys of a server, by the one form in which they are read: PEM files (RFC 9934).
fn ech_keys(options: &Options) -> Result<Vec<EchKey>> {
    let mut keys = Vec::new();
    for [config, key, retry] in &options.ech_keys {
        let config = base64(config)?;
        let list = [&u16::try_from(config.len())?.to_be_bytes(), &config[..]].concat();
        let pkcs8 = [&PKCS8_X25519[..], &base64(key)?].concat();
        let pem: String = [("PRIVATE KEY", pkcs8), ("ECHCONFIG", list)]
            .map(|(label, bytes)| {
                let text = STANDARD.encode(bytes);
                format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
            })
            .concat();
        keys.extend(
            EchKey::from_pem(&pem)?
                .into_iter()
                .map(|key| key.with_retry(retry == "1")),
        );
    }
    Ok(keys)
}

/// PKCS #8 up to an X25519 private key (RFC 8410 section 7).
const PKCS8_X25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20,
];

async fn run(options: &Options) -> Result {
    let end = if options.server {
        let (Some(chain), Some(key)) = (&options.certificate, &options.key) else {
            return Err("a server without a certificate".into());
        };
        let context = ServerContext::new(&[Identity {
            chain_pem: std::fs::read(chain)?,
            key_pem: std::fs::read(key)?,
        }])?;
        if !options.ech_keys.is_empty() {
            context.set_ech_keys(&ech_keys(options)?)?;
        }
        End::Server(context)
    } else {
        let trusted = options.trusted.as_ref().map(std::fs::read).transpose()?;
        End::Client(Box::new(ClientContext::new(&Trust {
            system: false,
            extra_pem: trusted.into_iter().collect(),
        })?))
    };
    for round in 0..=options.resumptions {
        let address = if options.ipv6 { "::1" } else { "127.0.0.1" };
        let mut tcp = TcpStream::connect((address, options.port)).await?;
        tcp.write_all(&options.shim_id.to_le_bytes()).await?;
        let tcp = tcp.into_std()?;
        let socket = tcp.try_clone()?;
        let result = one(&end, TcpStream::from_std(tcp)?, options, round).await;
        if result.is_err() {
            linger(&socket)?;
        }
        result?;
    }
    Ok(())
}

async fn one(end: &End, tcp: TcpStream, options: &Options, round: usize) -> Result {
    let mut tls = match end {
        End::Server(context) => accept(tcp, context).await?,
        End::Client(context) => connect(tcp, context, parameters(options)).await?,
    };
    let info = tls.info();
    let resumed = round > 0 && !options.expect_session_miss;
    let name = options.expect_server_name.as_deref();
    if info.resumed != resumed
        || info.ech_accepted != options.expect_ech_accept
        || options
            .expect_retry
            .is_some_and(|retry| retry != info.hello_retry)
        || name.is_some_and(|name| info.server_name.as_deref() != Some(name))
    {
        return Err(format!("connection {round} is not as expected: {info:?}").into());
    }
    exchange(&mut tls, options).await
}

/// Reads what the runner still sends. It sends on after a failure, and if the connection were reset by that, it would not see
/// our alert.
fn linger(mut socket: &std::net::TcpStream) -> Result {
    let _ = socket.shutdown(Shutdown::Write);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(LINGER))?;
    while let Ok(1..) = socket.read(&mut [0; 4096]) {}
    Ok(())
}

enum End {
    Server(ServerContext),
    Client(Box<ClientContext>),
}

fn parameters(options: &Options) -> ClientParameters<'_> {
    ClientParameters {
        profile: Profile::standard(),
        form: HelloForm::FirstContact,
        // The name in the runner's certificates.
        server_name: options.host_name.as_deref().unwrap_or("test"),
        ech: options.ech_list.as_deref().map_or(Ech::Off, Ech::List),
        without: None,
        session_key: Some("runner"),
    }
}

async fn exchange(tls: &mut TlsStream, options: &Options) -> Result {
    if options.writes_first {
        tls.write_all(b"hello").await?;
        tls.flush().await?;
    }
    if options.shuts_down {
        tls.shutdown().await?;
    }
    let mut buffer = vec![0; 16_384];
    loop {
        let length = match tls.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            // Some tests end without a close_notify, and look at what came before alone.
            Err(error)
                if error.kind() == std::io::ErrorKind::UnexpectedEof
                    && !options.check_close_notify =>
            {
                break;
            }
            Err(error) => return Err(error.into()),
        };
        if options.shuts_down {
            return Err("data after our end".into());
        }
        for byte in &mut buffer[..length] {
            *byte ^= 0xff;
        }
        tls.write_all(&buffer[..length]).await?;
        tls.flush().await?;
    }
    // The peer may be gone already.
    let _ = tls.shutdown().await;
    Ok(())
}
