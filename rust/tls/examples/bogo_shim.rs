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
}

async fn run(options: &Options) -> Result {
    let end = if options.server {
        let (Some(chain), Some(key)) = (&options.certificate, &options.key) else {
            return Err("a server without a certificate".into());
        };
        End::Server(ServerContext::new(&[Identity {
            chain_pem: std::fs::read(chain)?,
            key_pem: std::fs::read(key)?,
        }])?)
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
    let resumed = tls.info().resumed;
    if resumed != (round > 0 && !options.expect_session_miss) {
        return Err(format!("connection {round}: resumed is {resumed}").into());
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
        ech: Ech::Off,
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
