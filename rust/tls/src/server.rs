//! The server's side.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use ech_workers_boringssl::flush_tickets;
use ech_workers_boringssl::hpke::HpkeKey;
use ech_workers_boringssl::pkey::PKey;
use ech_workers_boringssl::sha::sha256;
use ech_workers_boringssl::ssl::{
    AlpnError, NameType, Ssl, SslContext, SslContextBuilder, SslEchKeys, SslMethod, SslStream,
    SslVersion, select_next_proto,
};
use ech_workers_boringssl::x509::X509;
use tokio::net::TcpStream;

use crate::ech::EchKey;
use crate::error::{HandshakeError, ReplaceError, ServerError, describe};
use crate::handshake::{self, Observer, Wire};
use crate::hello::ClientHello;
use crate::info::HandshakeInfo;
use crate::stream::TlsStream;
use crate::tickets::TicketKeys;

/// What is looked at of a hello to learn its outer name; longer ones are served, too, but not described.
const MAX_DESCRIBED_HELLO: usize = 32 * 1024;

/// A certificate chain with its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The chain in PEM, the server's own certificate first.
    pub chain_pem: Vec<u8>,
    /// Its private key in PEM.
    pub key_pem: Vec<u8>,
}

/// What the connections of a server share. Cheap to clone; certificates and ECH keys may be changed at any time, for all
/// clones.
#[derive(Clone)]
pub struct ServerContext {
    current: Arc<RwLock<Current>>,
    /// Those that other servers have too; None: BoringSSL's own, which no other server has.
    tickets: Option<TicketKeys>,
}

struct Current {
    context: SslContext,
    /// Of those that were set last, to know whether others are. A private key is kept where BoringSSL uses it, and nowhere else.
    identities: Vec<Digest>,
    has_ech_keys: bool,
}

type Digest = [u8; 32];

impl Identity {
    fn digest(&self) -> Digest {
        let chain = sha256(&self.chain_pem);
        let key = sha256(&self.key_pem);
        sha256(&[chain, key].concat())
    }
}

fn digests(identities: &[Identity]) -> Vec<Digest> {
    identities.iter().map(Identity::digest).collect()
}

impl ServerContext {
    /// A server with these certificates. The first is shown to clients that ask for none of them: with ECH, the one for
    /// the public name belongs there, or clients cannot authenticate a rejection.
    ///
    /// # Errors
    /// [`ServerError`] if a chain or key cannot be used, or they do not belong together.
    pub fn new(identities: &[Identity]) -> Result<Self, ServerError> {
        Self::with_tickets(identities, None)
    }

    /// The same, with session tickets under these keys. They stay when certificates are replaced.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn with_tickets(
        identities: &[Identity],
        tickets: Option<TicketKeys>,
    ) -> Result<Self, ServerError> {
        let current = Current {
            context: context(identities, tickets.as_ref())?,
            identities: digests(identities),
            has_ech_keys: false,
        };
        Ok(Self {
            current: Arc::new(RwLock::new(current)),
            tickets,
        })
    }

    /// Replaces certificates and ECH keys together, from the next handshake on. Handshakes that are under way keep theirs; certificates
    /// that are the same as before keep their session tickets.
    ///
    /// # Errors
    /// [`ReplaceError`] if either cannot be used, or if there are no keys any more: nothing has changed then.
    pub fn replace(&self, identities: &[Identity], keys: &[EchKey]) -> Result<(), ReplaceError> {
        let built = match keys {
            [] => None,
            keys => Some(checked_keys(keys).map_err(ReplaceError::EchKeys)?),
        };
        let mut current = self.write();
        if built.is_none() && current.has_ech_keys {
            return Err(ReplaceError::EchKeys(ServerError::NoRetryKey));
        }
        let digests = digests(identities);
        let replacement = if current.identities == digests {
            current.context.clone()
        } else {
            context(identities, self.tickets.as_ref()).map_err(ReplaceError::Identities)?
        };
        if let Some(built) = built {
            replacement
                .set_ech_keys(&built)
                .map_err(|stack| ReplaceError::EchKeys(stack.into()))?;
        }
        current.context = replacement;
        current.identities = digests;
        current.has_ech_keys = !keys.is_empty();
        Ok(())
    }

    fn read(&self) -> SslContext {
        let current = self.current.read();
        current
            .unwrap_or_else(PoisonError::into_inner)
            .context
            .clone()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the ECH keys, from the next handshake on. Handshakes that are under way keep theirs.
    ///
    /// # Errors
    /// [`ServerError`] if no key is marked for retry, or two have the same configuration id.
    pub fn set_ech_keys(&self, keys: &[EchKey]) -> Result<(), ServerError> {
        let built = checked_keys(keys)?;
        let mut current = self.write();
        current.context.set_ech_keys(&built)?;
        current.has_ech_keys = true;
        Ok(())
    }
}

impl std::fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerContext").finish_non_exhaustive()
    }
}

/// Takes a client's handshake.
///
/// # Errors
/// [`HandshakeError`] says why there is no connection.
pub async fn accept(tcp: TcpStream, context: &ServerContext) -> Result<TlsStream, HandshakeError> {
    let mut ssl = Ssl::new(&context.read())?;
    let observer = Observer::attach(&mut ssl, false, None)?;
    let mut tls = SslStream::new(ssl, Wire::default())?;
    let mut hello = None;
    let mut first_bytes = Vec::new();
    handshake::drive(&mut tls, &tcp, Vec::new(), SslStream::accept, |bytes| {
        if hello.is_none() && first_bytes.len() + bytes.len() <= MAX_DESCRIBED_HELLO {
            first_bytes.extend_from_slice(bytes);
            hello = ClientHello::from_records(&first_bytes).ok().flatten();
        }
    })
    .await
    .map_err(|error| match error {
        HandshakeError::ResetAfterHello => HandshakeError::Closed,
        other => other,
    })?;

    let ssl = tls.ssl();
    let mut info = HandshakeInfo::of(ssl, hello.as_ref().map_or(0, |hello| hello.wire_length));
    if let Some(hello) = &hello {
        info.public_name = hello.server_name().map(Into::into);
        info.ech_config_id = hello.ech().map(|ech| ech.config_id);
    }
    // BoringSSL keeps the tickets back until the first write, of which it will not learn.
    flush_tickets(&mut tls)?;
    let keys = observer.keys(tls.ssl(), false)?;
    let unread = tls.get_mut().take_unread();
    let tickets = tls.get_mut().take_output();
    let mut stream = TlsStream::new(tcp, info, keys, &unread, None);
    stream.begin_with(&tickets);
    Ok(stream)
}

fn context(
    identities: &[Identity],
    tickets: Option<&TicketKeys>,
) -> Result<SslContext, ServerError> {
    let Some((first, others)) = identities.split_first() else {
        return Err(ServerError::Empty);
    };
    let (mut builder, certificate) = builder(first)?;
    // Tickets are the first context's, whichever certificate is shown.
    if let Some(tickets) = tickets {
        tickets.configure(&mut builder);
    }
    let others = others.iter().map(build).collect::<Result<Arc<[_]>, _>>()?;
    if !others.is_empty() {
        builder.set_servername_callback(move |ssl, _| {
            // With ECH this is the inner name.
            let chosen = ssl.servername(NameType::HOST_NAME).and_then(|name| {
                let suits = |certificate: &X509| certificate.check_host(name).unwrap_or(false);
                if suits(&certificate) {
                    return None;
                }
                others
                    .iter()
                    .find(|(_, certificate)| suits(certificate))
                    .map(|(context, _)| context)
            });
            if let Some(context) = chosen {
                // Cannot fail for a context of the same method; if it did, the first certificate would be shown.
                let _ = ssl.set_ssl_context(context);
            }
            Ok(())
        });
    }
    Ok(builder.build())
}

fn checked_keys(keys: &[EchKey]) -> Result<SslEchKeys, ServerError> {
    let mut ids = HashSet::new();
    if let Some(key) = keys.iter().find(|key| !ids.insert(key.config().id)) {
        return Err(ServerError::DuplicateId(key.config().id));
    }
    if !keys.iter().any(EchKey::is_retry) {
        return Err(ServerError::NoRetryKey);
    }
    ssl_keys(keys)
}

fn ssl_keys(keys: &[EchKey]) -> Result<SslEchKeys, ServerError> {
    let mut builder = SslEchKeys::builder()?;
    for key in keys {
        let private = HpkeKey::dhkem_x25519_sha256(key.private_key())?;
        builder.add_key(key.is_retry(), key.config().encoded(), private)?;
    }
    Ok(builder.build())
}

fn build(identity: &Identity) -> Result<(SslContext, X509), ServerError> {
    builder(identity).map(|(builder, certificate)| (builder.build(), certificate))
}

fn builder(identity: &Identity) -> Result<(SslContextBuilder, X509), ServerError> {
    let chain = X509::stack_from_pem(&identity.chain_pem)
        .map_err(|stack| ServerError::Chain(describe(&stack)))?;
    let mut chain = chain.into_iter();
    let certificate = chain
        .next()
        .ok_or_else(|| ServerError::Chain("no certificate in the PEM text".to_owned()))?;
    let key = PKey::private_key_from_pem(&identity.key_pem)
        .map_err(|stack| ServerError::Key(describe(&stack)))?;
    let mut builder = SslContext::builder(SslMethod::tls_server())?;
    handshake::configure(&mut builder)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    builder.set_certificate(&certificate)?;
    for issuer in chain {
        builder.add_extra_chain_cert(issuer)?;
    }
    builder
        .set_private_key(&key)
        .and_then(|()| builder.check_private_key())
        .map_err(|_| ServerError::Mismatch)?;
    // A client that offers only other protocols gets the alert no_application_protocol (RFC 7301 section 3.2), as from any web
    // server. One that offers none is served.
    builder.set_alpn_select_callback(|_, offered| {
        select_next_proto(b"\x08http/1.1", offered).ok_or(AlpnError::ALERT_FATAL)
    });
    Ok((builder, certificate))
}
