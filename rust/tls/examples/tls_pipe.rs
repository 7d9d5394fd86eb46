//! The yardstick of `make bench`: what the TLS layer alone costs, without WebSocket, yamux and proxy.
//!
//! ```text
//! tls_pipe client LISTEN SERVER NAME CA.pem down|up
//! tls_pipe server LISTEN TARGET CHAIN.pem KEY.pem down|up
//! ```
//!
//! Bytes go one way (down: from the target to the client), record by record as in the tunnel: opened where they were
//! read, or read where they are sealed. The port is printed as a JSON line.

use std::error::Error;
use std::future::poll_fn;
use std::io;

use ech_workers_tls::{
    ClientContext, ClientParameters, Ech, HelloForm, Identity, Profile, ServerContext, TlsStream,
    Trust, accept, connect,
};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpStream};

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [role, listen, to, first, second, direction] = words[..] else {
        return Err("usage: tls_pipe client|server LISTEN TO NAME|CHAIN CA|KEY down|up".into());
    };
    let listener = TcpListener::bind(listen).await?;
    println!(
        r#"{{"event":"listening","address":"{}"}}"#,
        listener.local_addr()?
    );
    let end = match role {
        "client" => End::Client {
            context: ClientContext::new(&Trust {
                system: false,
                extra_pem: vec![std::fs::read(second)?],
            })?,
            name: first.to_owned(),
        },
        _ => End::Server(ServerContext::new(&[Identity {
            chain_pem: std::fs::read(first)?,
            key_pem: std::fs::read(second)?,
        }])?),
    };
    // Sealing: the server when bytes go down, the client when they go up.
    let sealing = (role == "server") == (direction == "down");
    loop {
        let (accepted, _) = listener.accept().await?;
        accepted.set_nodelay(true)?;
        let (end, to) = (end.clone(), to.to_owned());
        tokio::spawn(async move {
            if let Err(error) = end.serve(accepted, &to, sealing).await {
                eprintln!("{error}");
            }
        });
    }
}

#[derive(Clone)]
enum End {
    Client {
        context: ClientContext,
        name: String,
    },
    Server(ServerContext),
}

impl End {
    async fn serve(&self, accepted: TcpStream, to: &str, sealing: bool) -> Result {
        let dialled = TcpStream::connect(to).await?;
        dialled.set_nodelay(true)?;
        let (tls, plain) = match self {
            Self::Client { context, name } => {
                let parameters = ClientParameters {
                    profile: Profile::standard(),
                    form: HelloForm::WebSocket,
                    server_name: name,
                    ech: Ech::Off,
                    without: None,
                    session_key: None,
                };
                (connect(dialled, context, parameters).await?, accepted)
            }
            Self::Server(context) => (accept(accepted, context).await?, dialled),
        };
        if sealing {
            seal(plain, tls).await?;
        } else {
            open(tls, plain).await?;
        }
        Ok(())
    }
}

async fn seal(plain: TcpStream, mut tls: TlsStream) -> io::Result<()> {
    loop {
        poll_fn(|cx| tls.poll_ready(cx)).await?;
        match plain.try_read(tls.record()) {
            Ok(0) => break,
            Ok(length) => tls.seal(length)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| tls.poll_flush(cx)).await?;
                plain.ready(Interest::READABLE).await?;
            }
            Err(error) => return Err(error),
        }
    }
    poll_fn(|cx| tls.poll_close(cx)).await?;
    // A socket closed with something unread in it (the server's tickets) is reset, and what is on its way is lost.
    while let Ok(Some(_)) = poll_fn(|cx| tls.poll_open(cx).map_ok(|opened| opened.map(drop))).await
    {
    }
    Ok(())
}

async fn open(mut tls: TlsStream, mut plain: TcpStream) -> io::Result<()> {
    loop {
        let rest = poll_fn(|cx| {
            tls.poll_open(cx).map_ok(|opened| {
                opened.map(|data| {
                    // Nearly always the socket takes it all, without a copy.
                    let written = plain.try_write(data).unwrap_or(0);
                    data[written..].to_vec()
                })
            })
        })
        .await?;
        match rest {
            Some(rest) => plain.write_all(&rest).await?,
            None => return plain.shutdown().await,
        }
    }
}
