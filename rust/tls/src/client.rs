//! The client's side: whom to trust, what to send, and the handshake.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ech_workers_boringssl::offer_session;
use ech_workers_boringssl::ssl::{
    ClientHelloShape, GreaseLists, Padding, Ssl, SslContext, SslContextBuilder, SslMethod,
    SslOptions, SslRef, SslSession, SslSessionCacheMode, SslSignatureAlgorithm, SslStream,
    SslVerifyMode, SslVersion, UnknownValues,
};
use ech_workers_boringssl::x509::{X509, store::X509StoreBuilder};
use tokio::net::TcpStream;

use crate::compression;
use crate::ech::{ConfigList, ConfigListError};
use crate::error::{HandshakeError, TrustError, Unsupported, describe};
use crate::handshake::{self, Observer, Wire};
use crate::hello::ClientHello;
use crate::info::HandshakeInfo;
use crate::profile::{HelloForm, Profile, extension, is_finite_field};
use crate::stream::TlsStream;

/// Whose certificates are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// The system's roots; Mozilla's, built in, where the system has none.
    pub system: bool,
    /// More roots, each a PEM text of one or more certificates.
    pub extra_pem: Vec<Vec<u8>>,
}

/// What the connections of a client share: trust roots and session tickets. Cheap to clone.
#[derive(Clone)]
pub struct ClientContext {
    context: SslContext,
    sessions: Sessions,
}

/// How one connection is made.
#[derive(Debug, Clone, Copy)]
pub struct ClientParameters<'a> {
    /// The browser whose hello is sent.
    pub profile: &'static Profile,
    /// Which of its hellos.
    pub form: HelloForm,
    /// The server's (inner) name, or its IP address.
    pub server_name: &'a str,
    /// ECH, or its absence.
    pub ech: Ech<'a>,
    /// What to leave out of the profile's hello, for a server that chose it and will choose something else: all groups of
    /// that kind, or delegated_credential. `None` is the browser's hello.
    pub without: Option<Unsupported>,
    /// Connections with the same key resume one another's sessions (RFC 8446 section 2.2): the same server, under the
    /// same name. `None`: this one does not take part.
    pub session_key: Option<&'a str>,
}

/// Whether the server's name is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ech<'a> {
    /// With one of the configurations of this ECHConfigList, or there is no connection.
    List(&'a [u8]),
    /// The name is sent in clear, and no encrypted_client_hello at all.
    Off,
}

impl ClientContext {
    /// A context that believes `trust`.
    ///
    /// # Errors
    /// [`TrustError`] if there is nothing to trust, or a PEM text holds no certificate.
    pub fn new(trust: &Trust) -> Result<Self, TrustError> {
        let sessions = Sessions::default();
        let mut builder = SslContext::builder(SslMethod::tls_client())?;
        handshake::configure(&mut builder)?;
        // The hello offers TLS 1.2 as the browser's does; an answer in it is refused after the fact.
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        builder.set_grease_enabled(false);
        builder.set_permute_extensions(false);
        compression::register(&mut builder)?;
        builder.set_verify(SslVerifyMode::PEER);
        trust_roots(&mut builder, trust)?;
        builder
            .set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        let kept = sessions.clone();
        builder.set_new_session_callback(move |ssl, session| {
            if let Some(key) = Observer::session_key(ssl) {
                kept.put(&key, session);
            }
        });
        Ok(Self {
            context: builder.build(),
            sessions,
        })
    }

    /// The ClientHello that [`connect`] would send now, as records, without a connection.
    ///
    /// # Errors
    /// As [`connect`], before it sends anything.
    pub fn client_hello(
        &self,
        parameters: ClientParameters<'_>,
    ) -> Result<Vec<u8>, HandshakeError> {
        Ok(self.begin(parameters, false)?.records)
    }

    /// Everything up to the first bytes, which are checked before anyone sees them.
    fn begin(
        &self,
        parameters: ClientParameters<'_>,
        resume: bool,
    ) -> Result<Begun, HandshakeError> {
        let list = match parameters.ech {
            Ech::List(list) => Some((list, ConfigList::parse(list)?)),
            Ech::Off => None,
        };
        let mut ssl = Ssl::new(&self.context)?;
        let observer = Observer::attach(&mut ssl, true, parameters.session_key)?;
        shape(&mut ssl, &parameters)?;
        set_name(&mut ssl, parameters.server_name)?;
        if let Some((list, _)) = &list {
            ssl.set_ech_config_list(list)
                .map_err(|_| ConfigListError::Refused)?;
        }
        if resume
            && let Some(session) = parameters
                .session_key
                .and_then(|key| self.sessions.take(key))
        {
            // SAFETY: sessions are only put by connections of this context, into the store beside it.
            #[allow(unsafe_code)]
            unsafe {
                offer_session(&mut ssl, &session)?;
            }
            // The browser's resumption hello has no session_ticket extension. With ECH the outer one has a placeholder
            // for the ticket (RFC 9849 section 6.1.2; vendor/boringssl/patches) and is of the same form.
            ssl.set_options(SslOptions::NO_TICKET);
        }
        ssl.set_shed_handshake_config(true);
        let mut tls = SslStream::new(ssl, Wire::default())?;
        match tls.connect() {
            Err(error) if error.would_block() => {}
            Err(error) => {
                return Err(HandshakeError::from_boringssl(&error, tls.ssl(), None));
            }
            Ok(()) => return Err(HandshakeError::Tls("no handshake".to_owned())),
        }
        let records = tls.get_mut().take_output();
        let hello = check_hello(&records, list.as_ref().map(|(_, list)| list))?;
        Ok(Begun {
            tls,
            observer,
            records,
            hello,
        })
    }
}

impl std::fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientContext").finish_non_exhaustive()
    }
}

/// Connects: a handshake with the profile's hello over `tcp`.
///
/// With [`Ech::List`] the server's name is never sent in clear, whatever the server answers, and a connection exists
/// only if the server has confirmed ECH.
///
/// # Errors
/// [`HandshakeError`] says why there is no connection.
pub async fn connect(
    tcp: TcpStream,
    context: &ClientContext,
    parameters: ClientParameters<'_>,
) -> Result<TlsStream, HandshakeError> {
    let Begun {
        mut tls,
        observer,
        records,
        hello,
    } = context.begin(parameters, true)?;
    handshake::drive(&mut tls, &tcp, records, SslStream::connect, |_| {}).await?;

    let ssl = tls.ssl();
    // BoringSSL has refused these already; the promise does not hang on that.
    if parameters.ech != Ech::Off && !ssl.ech_accepted() {
        return Err(HandshakeError::EchNotAccepted);
    }
    if ssl.version() != Some(SslVersion::TLS1_3) {
        return Err(HandshakeError::TlsVersion);
    }
    let mut info = HandshakeInfo::of(ssl, hello.wire_length);
    info.server_name = Some(parameters.server_name.into());
    info.public_name = hello.server_name().map(Into::into);
    info.ech_config_id = hello.ech().map(|ech| ech.config_id);
    let keys = observer.keys(ssl, true)?;
    let unread = tls.get_mut().take_unread();
    let tickets = parameters.session_key.is_some().then_some(tls);
    Ok(TlsStream::new(tcp, info, keys, &unread, tickets))
}

struct Begun {
    tls: SslStream<Wire>,
    observer: Observer,
    records: Vec<u8>,
    hello: ClientHello,
}

/// The profile's settings on one connection.
fn shape(ssl: &mut SslRef, parameters: &ClientParameters<'_>) -> Result<(), HandshakeError> {
    let &ClientParameters { profile, form, .. } = parameters;
    let mut extensions = profile.extensions(form, parameters.ech != Ech::Off);
    let mut groups = profile.groups.to_vec();
    match parameters.without {
        None => {}
        Some(Unsupported::Group(_)) => groups.retain(|group| !is_finite_field(group)),
        Some(Unsupported::DelegatedCredential) => {
            extensions.retain(|id| *id != extension::DELEGATED_CREDENTIAL);
        }
    }
    let has = |id: u16| extensions.contains(&id);
    ssl.set_client_hello_shape(
        &ClientHelloShape::new()
            .with_grease_lists(GreaseLists::empty())
            .with_unknown_values(UnknownValues::Preserve)
            .with_padding(Padding::Off),
    )?;
    ssl.set_enable_ech_grease(false);
    ssl.set_raw_cipher_list(profile.cipher_suites)?;
    ssl.set_extension_order(&extensions)?;
    ssl.set_raw_supported_groups(&groups)?;
    ssl.set_raw_key_shares(profile.key_shares)?;
    ssl.set_raw_signature_algorithms(profile.signature_algorithms)?;
    let alpn: Vec<u8> = profile
        .alpn(form)
        .iter()
        .flat_map(|protocol| std::iter::once(protocol.len() as u8).chain(protocol.bytes()))
        .collect();
    ssl.set_alpn_protos(&alpn)?;
    if has(extension::RECORD_SIZE_LIMIT) {
        ssl.set_record_size_limit(profile.record_size_limit)?;
    }
    if has(extension::DELEGATED_CREDENTIAL) {
        let schemes: Vec<SslSignatureAlgorithm> = profile
            .delegated_credentials
            .iter()
            .map(|scheme| SslSignatureAlgorithm::from(*scheme))
            .collect();
        ssl.set_delegated_credential_schemes(&schemes)?;
    }
    if has(extension::STATUS_REQUEST) {
        ssl.enable_ocsp_stapling();
    }
    if has(extension::SIGNED_CERTIFICATE_TIMESTAMP) {
        ssl.enable_signed_cert_timestamps();
    }
    if !has(extension::SESSION_TICKET) {
        ssl.set_options(SslOptions::NO_TICKET);
    }
    let algorithms: &[u16] = if has(extension::COMPRESS_CERTIFICATE) {
        profile.certificate_compression
    } else {
        &[]
    };
    ssl.set_certificate_compression_algorithms(&compression::algorithms(algorithms))?;
    Ok(())
}

/// The name to send and to find in the certificate.
fn set_name(ssl: &mut SslRef, name: &str) -> Result<(), HandshakeError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        // RFC 6066 section 3: addresses are not sent as names.
        return Ok(ssl.verify_param_mut().set_ip(address)?);
    }
    let valid = (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..");
    if !valid {
        return Err(HandshakeError::ServerName);
    }
    ssl.set_hostname(name)?;
    ssl.verify_param_mut().set_host(name)?;
    Ok(())
}

/// The last look before anything is sent: with ECH the hello must carry it, with a configuration of the list, and name
/// no server but that configuration's public name; without ECH it must carry none.
fn check_hello(records: &[u8], list: Option<&ConfigList>) -> Result<ClientHello, HandshakeError> {
    let wrong = |what: &str| {
        Err(HandshakeError::Tls(format!(
            "refused to send the hello: {what}"
        )))
    };
    let Ok(Some(hello)) = ClientHello::from_records(records) else {
        return wrong("malformed");
    };
    match (list, hello.ech()) {
        (None, _) if hello.extension(crate::ech::VERSION).is_some() => {
            wrong("it has an encrypted_client_hello nobody asked for")
        }
        (None, _) => Ok(hello),
        (Some(_), None) => wrong("it has no encrypted_client_hello"),
        (Some(list), Some(ech)) => {
            let is_public = list.configs().iter().any(|config| {
                config.id == ech.config_id
                    && hello.server_name() == Some(config.public_name.as_str())
            });
            if is_public {
                Ok(hello)
            } else {
                wrong("its name is not the public name")
            }
        }
    }
}

fn trust_roots(context: &mut SslContextBuilder, trust: &Trust) -> Result<(), TrustError> {
    if !trust.system && trust.extra_pem.is_empty() {
        return Err(TrustError::Empty);
    }
    let mut store = X509StoreBuilder::new()?;
    for (index, pem) in trust.extra_pem.iter().enumerate() {
        let reason = match X509::stack_from_pem(pem) {
            Ok(certificates) if !certificates.is_empty() => {
                for certificate in certificates {
                    store.add_cert(&certificate)?;
                }
                continue;
            }
            Ok(_) => "no certificate in the PEM text".to_owned(),
            Err(stack) => describe(&stack),
        };
        return Err(TrustError::Pem { index, reason });
    }
    let hashed = trust.system.then(hashed_directory).flatten();
    if trust.system && hashed.is_none() {
        add_all_system_roots(&mut store)?;
    }
    context.set_cert_store_builder(store);
    if let Some(directory) = hashed {
        context.load_verify_locations(None, Some(&directory))?;
    }
    Ok(())
}

/// A directory in which BoringSSL finds roots by the hash of their name, when a chain leads there: 3 MB less than having
/// parsed all of them. OpenSSL's two environment variables are obeyed.
fn hashed_directory() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).map(PathBuf::from);
    let directory = named("SSL_CERT_DIR").unwrap_or_else(|| "/etc/ssl/certs".into());
    // A bundle that lies in the directory is the sum of it (Debian's ca-certificates.crt); another one adds to it.
    let complete = named("SSL_CERT_FILE").is_none_or(|bundle| bundle.parent() == Some(&directory));
    (complete && is_hashed(&directory)).then_some(directory)
}

/// Whether files there are called as `openssl rehash` calls them: eight hexadecimal digits and `.0`.
fn is_hashed(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.filter_map(Result::ok).any(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(".0"))
                .is_some_and(|hash| {
                    hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
                })
                && entry.path().exists()
        })
    })
}

/// The system's roots, each parsed; Mozilla's where there are none.
fn add_all_system_roots(store: &mut X509StoreBuilder) -> Result<(), TrustError> {
    let mut found = false;
    // Single unreadable files are no reason to trust nobody.
    for der in rustls_native_certs::load_native_certs().certs {
        if let Ok(certificate) = X509::from_der(&der) {
            store.add_cert(&certificate)?;
            found = true;
        }
    }
    if !found {
        for der in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            store.add_cert(&X509::from_der(der)?)?;
        }
    }
    Ok(())
}

/// Session tickets by key. Each is used once (RFC 8446 section C.4: otherwise connections can be linked).
#[derive(Clone, Default)]
struct Sessions(Arc<Mutex<HashMap<Box<str>, VecDeque<SslSession>>>>);

impl Sessions {
    /// Tickets kept for a key. Servers send one to four a connection.
    const PER_KEY: usize = 4;
    /// Keys remembered; a client has a handful of servers and resolvers.
    const KEYS: usize = 256;

    fn put(&self, key: &str, session: SslSession) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !map.contains_key(key) && map.len() >= Self::KEYS {
            map.clear();
        }
        let tickets = map.entry(key.into()).or_default();
        if tickets.len() >= Self::PER_KEY {
            tickets.pop_front();
        }
        tickets.push_back(session);
    }

    /// The newest ticket that has not run out.
    fn take(&self, key: &str) -> Option<SslSession> {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tickets = map.get_mut(key)?;
        while let Some(session) = tickets.pop_back() {
            if session.time().saturating_add(u64::from(session.timeout())) > now {
                return Some(session);
            }
        }
        map.remove(key);
        None
    }
}

#[cfg(test)]
mod tests {
    use ech_workers_boringssl::stack::Stack;
    use ech_workers_boringssl::x509::X509StoreContext;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::authority::{CertificateAuthority, Validity};

    /// An empty directory of its own, gone with the value.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("ech-workers-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_root_is_found_by_the_hash_of_its_name() {
        let directory = Directory::new("hashed");
        assert!(!is_hashed(&directory.0));
        let authority = CertificateAuthority::new().unwrap();
        let pem = authority.root_pem().unwrap();
        let root = X509::from_pem(&pem).unwrap();
        let file = format!("{:08x}.0", root.subject_name_hash());
        std::fs::write(directory.0.join(file), &pem).unwrap();
        assert!(is_hashed(&directory.0));

        let mut client = SslContext::builder(SslMethod::tls_client()).unwrap();
        client.set_verify(SslVerifyMode::PEER);
        client
            .load_verify_locations(None, Some(&directory.0))
            .unwrap();
        let client = client.build();
        let leaf = |authority: &CertificateAuthority| {
            let identity = authority.issue(&["a.test"], Validity::days(1)).unwrap();
            X509::from_pem(&identity.chain_pem).unwrap()
        };
        let verify = |certificate: &X509| {
            let mut context = X509StoreContext::new().unwrap();
            let chain = Stack::new().unwrap();
            context
                .init(client.cert_store(), certificate, &chain, |context| {
                    context.verify_cert()
                })
                .unwrap()
        };
        assert!(verify(&leaf(&authority)));
        assert!(!verify(&leaf(&CertificateAuthority::new().unwrap())));
    }

    #[tokio::test]
    async fn the_outer_hello_has_something_like_the_ticket_and_not_the_ticket() {
        let authority = CertificateAuthority::new().unwrap();
        let client = ClientContext::new(&Trust {
            system: false,
            extra_pem: vec![authority.root_pem().unwrap()],
        })
        .unwrap();
        let key = crate::ech::EchKey::generate(1, "public.test", 64).unwrap();
        let list = crate::ech::config_list(std::slice::from_ref(&key));
        let identity = authority
            .issue(&["secret.test"], Validity::days(1))
            .unwrap();
        let server = crate::ServerContext::new(&[identity]).unwrap();
        server.set_ech_keys(&[key]).unwrap();
        for profile in crate::profile::ALL {
            let with = |ech| ClientParameters {
                profile,
                form: HelloForm::FirstContact,
                server_name: "secret.test",
                ech,
                without: None,
                session_key: Some(profile.name),
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (mine, theirs) = tokio::join!(
                async {
                    let tcp = TcpStream::connect(address).await.unwrap();
                    connect(tcp, &client, with(Ech::List(&list))).await
                },
                async { crate::accept(listener.accept().await.unwrap().0, &server).await }
            );
            let (mut mine, mut theirs) = (mine.unwrap(), theirs.unwrap());
            theirs.write_all(b"!").await.unwrap();
            theirs.flush().await.unwrap();
            mine.read_exact(&mut [0]).await.unwrap();

            // The same ticket in clear and within ECH.
            let session = client.sessions.take(profile.name).unwrap();
            let pre_shared_key = |ech| {
                client.sessions.put(profile.name, session.clone());
                let hello = client.begin(with(ech), true).unwrap().hello;
                hello.extension(41).unwrap().to_vec()
            };
            let real = pre_shared_key(Ech::Off);
            let placeholder = pre_shared_key(Ech::List(&list));
            assert_eq!(real.len(), placeholder.len());
            assert_eq!(real[..4], placeholder[..4], "the ticket's length");
            let ticket = 4..real.len() - 4 - 2 - 1 - 32;
            let age = ticket.end..ticket.end + 4;
            let lengths = age.end..age.end + 3;
            assert_eq!(real[lengths.clone()], [0, 33, 32], "a binder of SHA-256");
            assert_eq!(real[lengths.clone()], placeholder[lengths]);
            // No stretch of the ticket is in it, and age and binder are not the real ones.
            let stretches: std::collections::HashSet<_> = real[ticket.clone()].windows(8).collect();
            assert!(
                !placeholder[ticket]
                    .windows(8)
                    .any(|eight| stretches.contains(eight))
            );
            assert_ne!(real[age.clone()], placeholder[age]);
            assert_ne!(real[real.len() - 32..], placeholder[real.len() - 32..]);
        }
    }

    #[test]
    fn mozillas_roots_can_all_be_read() {
        for der in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            X509::from_der(der).unwrap();
        }
    }

    #[test]
    fn a_hello_that_would_give_the_name_away_is_not_sent() {
        let authority = CertificateAuthority::new().unwrap();
        let client = ClientContext::new(&Trust {
            system: false,
            extra_pem: vec![authority.root_pem().unwrap()],
        })
        .unwrap();
        let key = crate::ech::EchKey::generate(1, "public.test", 64).unwrap();
        let other = crate::ech::EchKey::generate(2, "public.test", 64).unwrap();
        let list = crate::ech::config_list(&[key]);
        let with = |ech| {
            client
                .client_hello(ClientParameters {
                    profile: Profile::standard(),
                    form: HelloForm::FirstContact,
                    server_name: "secret.test",
                    ech,
                    without: None,
                    session_key: None,
                })
                .unwrap()
        };
        let parsed = ConfigList::parse(&list).unwrap();
        let foreign = ConfigList::parse(&crate::ech::config_list(&[other])).unwrap();
        assert!(check_hello(&with(Ech::List(&list)), Some(&parsed)).is_ok());
        assert!(check_hello(&with(Ech::Off), None).is_ok());
        for (records, list) in [
            (with(Ech::Off), Some(&parsed)),
            (with(Ech::List(&list)), Some(&foreign)),
            (with(Ech::List(&list)), None),
            (Vec::new(), None),
        ] {
            let error = check_hello(&records, list).unwrap_err();
            assert!(error.to_string().contains("refused to send"), "{error}");
        }
    }
}
