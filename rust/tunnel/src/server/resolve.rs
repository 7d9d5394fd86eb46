//! The server's look-up of targets' names: the hosts file, then the system's name servers, asynchronously. A look-up is owned by
//! who asks for it and ends when it is dropped; so many may run at a time, with a share of them for each session.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use ech_workers_session::Status;
use ech_workers_sync::Mutex;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::Stream;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::time::Sleep;

use crate::failure::Layer;
use crate::server::permits::{Permit, Permits, Share};

/// How often the system's files are looked at for a change.
const LOOK: Duration = Duration::from_secs(2);
/// Answers that are remembered, for at most the time that each of them says.
const CACHE: u64 = 4096;
/// What is remembered of an answer that says more is asked again after this long: servers move.
const CACHE_TIME: Duration = Duration::from_secs(3600);
/// How long the first IPv4 address waits for IPv6 ones (RFC 8305 section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Where the system says how names are looked up.
#[derive(Debug, Clone)]
pub(crate) struct SystemFiles {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) hosts: PathBuf,
}

impl Default for SystemFiles {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
        }
    }
}

/// Looks up names for all sessions of a server.
pub(crate) struct Resolver {
    files: SystemFiles,
    current: Mutex<Current>,
    permits: Permits,
    /// It has been said that the configuration cannot be read.
    said: AtomicBool,
}

struct Current {
    looked: Option<Instant>,
    stamps: [Option<Stamp>; 2],
    sources: Arc<Sources>,
}

/// Of a file: when it was changed and how large it is.
type Stamp = (SystemTime, u64);

/// What one reading of the system's files gave.
#[derive(Default)]
struct Sources {
    hosts: Hosts,
    /// `None` without a usable configuration.
    servers: Option<TokioResolver>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// At most `lookups` at a time, of which a session may have `share`.
    pub(crate) fn new(files: SystemFiles, lookups: usize, share: usize) -> Self {
        Self {
            files,
            current: Mutex::new(Current {
                looked: None,
                stamps: [None; 2],
                sources: Arc::default(),
            }),
            permits: Permits::new(lookups, share, usize::MAX),
            said: AtomicBool::new(false),
        }
    }

    /// A session's share.
    pub(crate) fn share(&self) -> Share {
        self.permits.share()
    }

    /// Begins to look up a name. The addresses come as the answer's stream has them; if there are none, [`Lookup::failure`] says
    /// why.
    pub(crate) async fn look_up(&self, name: &str, share: &Share) -> Lookup {
        if is_localhost(name) {
            return Lookup::known([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let sources = self.sources();
        let Ok(parsed) = Name::from_ascii(name) else {
            return Lookup::failed(LookupFailure::NoSuchName);
        };
        let listed = listed(&sources.hosts, &parsed);
        if !listed.is_empty() {
            return Lookup::known(listed);
        }
        let Some(servers) = sources.servers.clone() else {
            return Lookup::failed(LookupFailure::NoServers);
        };
        let permit = share.acquire(()).await;
        let ask = |kind| {
            let (servers, name) = (servers.clone(), parsed.clone());
            async move { addresses(servers.lookup(name, kind).await) }.boxed()
        };
        Lookup {
            asked: [Some(ask(RecordType::AAAA)), Some(ask(RecordType::A))],
            answers: Default::default(),
            failure: None,
            delay: None,
            last: None,
            permit: Some(permit),
        }
    }

    /// What the system's files say, read again when they have changed.
    fn sources(&self) -> Arc<Sources> {
        let mut current = self.current.lock();
        let now = Instant::now();
        if current.looked.is_none_or(|looked| now >= looked + LOOK) {
            let stamps = [&self.files.resolv_conf, &self.files.hosts].map(|file| stamp(file));
            if current.looked.is_none() || stamps != current.stamps {
                current.stamps = stamps;
                current.sources = Arc::new(self.read());
            }
            current.looked = Some(now);
        }
        Arc::clone(&current.sources)
    }

    fn read(&self) -> Sources {
        let mut hosts = Hosts::default();
        if let Ok(file) = std::fs::File::open(&self.files.hosts)
            && let Err(error) = hosts.read_hosts_conf(file)
        {
            tracing::warn!(
                layer = Layer::Resolver.name(),
                "{}: {error}",
                self.files.hosts.display()
            );
        }
        let servers = std::fs::read(&self.files.resolv_conf)
            .map_err(NetError::from)
            .and_then(|text| configuration(&text))
            .and_then(|(config, options)| servers(config, options));
        let servers = match servers {
            Ok(servers) => Some(servers),
            Err(error) => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        layer = Layer::Resolver.name(),
                        "{}: {error}: only names of {} can be reached until it is mended",
                        self.files.resolv_conf.display(),
                        self.files.hosts.display()
                    );
                }
                None
            }
        };
        Sources { hosts, servers }
    }
}

/// What a resolv.conf says (resolv.conf(5)). The resolver's own reader of it brings the ways of other systems with it.
fn configuration(text: &[u8]) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    let parsed =
        resolv_conf::Config::parse(text).map_err(|error| NetError::from(error.to_string()))?;
    let servers: Vec<_> = parsed
        .nameservers
        .iter()
        .map(|address| NameServerConfig::udp_and_tcp(address.into()))
        .collect();
    if servers.is_empty() {
        return Err(NetError::from("it names no name server"));
    }
    let search = parsed
        .get_last_search_or_domain()
        .filter_map(|domain| Name::from_str_relaxed(domain).ok())
        .collect();
    let mut options = ResolverOpts::default();
    options.ndots = parsed.ndots as usize;
    options.timeout = Duration::from_secs(parsed.timeout.into());
    options.attempts = parsed.attempts as usize;
    options.edns0 = parsed.edns0;
    Ok((ResolverConfig::from_parts(None, search, servers), options))
}

fn servers(config: ResolverConfig, options: ResolverOpts) -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options);
    let options = builder.options_mut();
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE;
    options.positive_max_ttl = Some(CACHE_TIME);
    options.negative_max_ttl = Some(CACHE_TIME);
    // Over TCP, queries of all sessions share one connection: more than the permits allow never wait there.
    options.max_active_requests = usize::from(u16::MAX);
    builder.build()
}

fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = file.metadata().ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Names that mean this host whatever a name server says (RFC 6761 section 6.3).
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name);
    last.eq_ignore_ascii_case("localhost")
}

/// The addresses that the hosts file has for a name.
fn listed(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    [RecordType::AAAA, RecordType::A]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|lookup| {
            lookup
                .answers()
                .iter()
                .filter_map(|record| record.data.ip_addr())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn addresses(
    outcome: Result<hickory_resolver::lookup::Lookup, NetError>,
) -> Result<Vec<IpAddr>, LookupFailure> {
    match outcome {
        Ok(lookup) => Ok(lookup
            .answers()
            .iter()
            .filter_map(|record| record.data.ip_addr())
            .collect()),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
            ResponseCode::NXDomain => Err(LookupFailure::NoSuchName),
            ResponseCode::NoError => Err(LookupFailure::NoAddress),
            code => Err(LookupFailure::Answered(code.to_string())),
        },
        Err(NetError::Dns(DnsError::ResponseCode(code))) => {
            Err(LookupFailure::Answered(code.to_string()))
        }
        Err(NetError::Timeout) => Err(LookupFailure::Silent),
        Err(error) => Err(LookupFailure::Broken(error.to_string())),
    }
}

/// Why a look-up brought no address. What says most comes last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum LookupFailure {
    #[error("the name has no address")]
    NoAddress,
    #[error("there is no such name")]
    NoSuchName,
    #[error("this server knows no name server")]
    NoServers,
    #[error("asking the name server failed: {0}")]
    Broken(String),
    #[error("the name server answered {0}")]
    Answered(String),
    #[error("the name server did not answer in time")]
    Silent,
}

impl LookupFailure {
    pub(crate) const fn status(&self) -> Status {
        match self {
            Self::Silent => Status::TimedOut,
            Self::Broken(_) | Self::Answered(_) | Self::NoServers => Status::General,
            Self::NoSuchName | Self::NoAddress => Status::NameNotFound,
        }
    }
}

/// A look-up under way: a stream of addresses, IPv6 and IPv4 in turn (RFC 8305 sections 3 and 4). Those of the kind that is there
/// are given while the other is still being asked for.
pub(crate) struct Lookup {
    /// IPv6 and IPv4, while they are being asked for.
    asked: [Option<Question>; 2],
    answers: [VecDeque<IpAddr>; 2],
    failure: Option<LookupFailure>,
    /// How long IPv4 still waits for IPv6.
    delay: Option<Pin<Box<Sleep>>>,
    /// The kind that was given last.
    last: Option<usize>,
    /// Given back when all has been answered.
    permit: Option<Permit>,
}

type Question = BoxFuture<'static, Result<Vec<IpAddr>, LookupFailure>>;

/// The kinds in their order of preference.
const IPV6: usize = 0;
const IPV4: usize = 1;

impl Lookup {
    fn known(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut lookup = Self::failed(LookupFailure::NoAddress);
        for address in addresses {
            let kind = if address.is_ipv6() { IPV6 } else { IPV4 };
            lookup.answers[kind].push_back(address);
        }
        lookup
    }

    fn failed(failure: LookupFailure) -> Self {
        Self {
            asked: [None, None],
            answers: Default::default(),
            failure: Some(failure),
            delay: None,
            last: None,
            permit: None,
        }
    }

    /// Why there was no address, once the stream has ended.
    pub(crate) fn failure(&self) -> LookupFailure {
        self.failure.clone().unwrap_or(LookupFailure::NoAddress)
    }

    /// Looks for answers.
    fn attend(&mut self, cx: &mut Context<'_>) {
        for (asked, answers) in self.asked.iter_mut().zip(&mut self.answers) {
            let Some(question) = asked else { continue };
            let Poll::Ready(outcome) = question.poll_unpin(cx) else {
                continue;
            };
            *asked = None;
            match outcome {
                Ok(addresses) => answers.extend(addresses),
                Err(failure) => self.failure = self.failure.take().max(Some(failure)),
            }
        }
        if self.asked.iter().all(Option::is_none) {
            self.permit = None;
        }
    }
}

impl Stream for Lookup {
    type Item = IpAddr;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<IpAddr>> {
        let this = &mut *self;
        this.attend(cx);
        let preferred = match this.last {
            None | Some(IPV4) => IPV6,
            Some(_) => IPV4,
        };
        let has = |kind: usize| !this.answers[kind].is_empty();
        let kind = match (has(preferred), has(1 - preferred)) {
            (true, _) => preferred,
            // The very first one: IPv6 may be about to come.
            (false, true) if this.last.is_none() && this.asked[IPV6].is_some() => {
                let delay = this
                    .delay
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(RESOLUTION_DELAY)));
                std::task::ready!(delay.as_mut().poll(cx));
                IPV4
            }
            (false, true) => 1 - preferred,
            (false, false) if this.asked.iter().all(Option::is_none) => return Poll::Ready(None),
            (false, false) => return Poll::Pending,
        };
        this.last = Some(kind);
        Poll::Ready(this.answers[kind].pop_front())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;

    use futures_util::StreamExt;
    use hickory_resolver::proto::op::Message;
    use hickory_resolver::proto::rr::{RData, Record};
    use tokio::net::UdpSocket;

    use super::*;

    /// A resolver that asks the name server on `port` and knows what is in `hosts`.
    fn resolver(port: u16, hosts: &str, lookups: usize, share: usize) -> Resolver {
        let mut known = Hosts::default();
        known.read_hosts_conf(hosts.as_bytes()).unwrap();
        let mut server = NameServerConfig::udp(Ipv4Addr::LOCALHOST.into());
        for connection in &mut server.connections {
            connection.port = port;
        }
        let mut options = ResolverOpts::default();
        options.timeout = Duration::from_secs(30);
        let resolver = Resolver::new(SystemFiles::default(), lookups, share);
        {
            let mut current = resolver.current.lock();
            current.looked = Some(Instant::now() + Duration::from_secs(3600));
            current.sources = Arc::new(Sources {
                hosts: known,
                servers: Some(
                    servers(ResolverConfig::from_name_servers(vec![server]), options).unwrap(),
                ),
            });
        }
        resolver
    }

    /// A name server that answers for the names it has, after so many milliseconds, and for no other. It counts questions.
    async fn name_server(
        names: HashMap<(&'static str, RecordType), (u64, IpAddr)>,
    ) -> (u16, Arc<Mutex<Vec<String>>>) {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let port = socket.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
                let request = Message::from_vec(&buffer[..n]).unwrap();
                let query = request.queries[0].clone();
                seen.lock().push(query.name().to_ascii());
                let key = names
                    .keys()
                    .find(|(name, kind)| {
                        query.name().to_ascii().eq_ignore_ascii_case(name)
                            && query.query_type() == *kind
                    })
                    .copied();
                let Some((delay, address)) = key.and_then(|key| names.get(&key)).copied() else {
                    continue;
                };
                tokio::spawn(answer(Arc::clone(&socket), from, request, delay, address));
            }
        });
        (port, asked)
    }

    async fn answer(
        socket: Arc<UdpSocket>,
        to: SocketAddr,
        request: Message,
        delay: u64,
        address: IpAddr,
    ) {
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let query = request.queries[0].clone();
        let mut response = Message::response(request.id, request.op_code);
        response.add_query(query.clone());
        let data = match address {
            IpAddr::V4(address) => RData::A(address.into()),
            IpAddr::V6(address) => RData::AAAA(address.into()),
        };
        response.add_answers([Record::from_rdata(query.name().clone(), 60, data)]);
        socket
            .send_to(&response.to_vec().unwrap(), to)
            .await
            .unwrap();
    }

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

    #[tokio::test]
    async fn localhost_and_the_hosts_file_need_no_name_server() {
        let resolver = resolver(
            9,
            "192.0.2.1 printer Printer.lan\n2001:db8::1 printer\n",
            4,
            2,
        );
        let share = resolver.share();
        for name in ["localhost", "localhost.", "app.LOCALHOST"] {
            let found: Vec<_> = resolver.look_up(name, &share).await.collect().await;
            assert!(found.contains(&Ipv4Addr::LOCALHOST.into()), "{name}");
        }
        for name in ["printer", "PRINTER."] {
            let found: Vec<_> = resolver.look_up(name, &share).await.collect().await;
            assert_eq!(found, [V6, V4], "{name}");
        }
        let found: Vec<_> = resolver
            .look_up("printer.lan", &share)
            .await
            .collect()
            .await;
        assert_eq!(found, [V4]);
    }

    #[tokio::test]
    async fn both_kinds_come_in_turn_and_the_second_question_is_answered_from_memory() {
        let (port, asked) = name_server(HashMap::from([
            (("both.test.", RecordType::A), (0, V4)),
            (("both.test.", RecordType::AAAA), (10, V6)),
        ]))
        .await;
        let resolver = resolver(port, "", 4, 2);
        let share = resolver.share();
        for _ in 0..2 {
            let found: Vec<_> = resolver.look_up("both.test", &share).await.collect().await;
            assert_eq!(found, [V6, V4]);
        }
        assert_eq!(asked.lock().len(), 2);
    }

    #[tokio::test]
    async fn an_answer_for_ipv6_that_does_not_come_holds_nobody_up() {
        let (port, _) = name_server(HashMap::from([(("old.test.", RecordType::A), (0, V4))])).await;
        let resolver = resolver(port, "", 4, 2);
        let share = resolver.share();
        let mut lookup = resolver.look_up("old.test", &share).await;
        let first = tokio::time::timeout(Duration::from_secs(5), lookup.next()).await;
        assert_eq!(first, Ok(Some(V4)));
    }

    #[tokio::test]
    async fn names_that_are_never_answered_do_not_hold_up_another_session() {
        let (port, _) = name_server(HashMap::from([
            (("good.test.", RecordType::A), (0, V4)),
            (("good.test.", RecordType::AAAA), (0, V6)),
        ]))
        .await;
        let resolver = Arc::new(resolver(port, "", 8, 6));
        let greedy = resolver.share();
        let mut hanging: Vec<_> = (0..100)
            .map(|number| {
                let (resolver, greedy) = (&resolver, &greedy);
                Box::pin(async move {
                    resolver
                        .look_up(&format!("dead{number}.test"), greedy)
                        .await
                        .collect::<Vec<_>>()
                        .await
                })
            })
            .collect();
        for lookup in &mut hanging {
            assert!(lookup.now_or_never().is_none());
        }
        let share = resolver.share();
        let good = async {
            resolver
                .look_up("good.test", &share)
                .await
                .collect::<Vec<_>>()
                .await
        };
        let found = tokio::time::timeout(Duration::from_secs(5), good).await;
        assert_eq!(found, Ok(vec![V6, V4]));
        // A look-up that is dropped gives its permit to the next.
        hanging.clear();
        let good = async {
            resolver
                .look_up("good.test", &greedy)
                .await
                .collect::<Vec<_>>()
                .await
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(5), good)
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_changed_configuration_is_taken_over() {
        let folder =
            std::env::temp_dir().join(format!("ech-workers-resolve-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = SystemFiles {
            resolv_conf: folder.join("resolv.conf"),
            hosts: folder.join("hosts"),
        };
        std::fs::write(&files.hosts, "192.0.2.1 printer\n").unwrap();
        let resolver = Resolver::new(files.clone(), 4, 2);
        let share = resolver.share();
        // There is no resolv.conf: the hosts file is used all the same.
        let found: Vec<_> = resolver.look_up("printer", &share).await.collect().await;
        assert_eq!(found, [V4]);
        let mut lookup = resolver.look_up("elsewhere.test", &share).await;
        assert_eq!(lookup.next().await, None);
        assert_eq!(lookup.failure(), LookupFailure::NoServers);
        std::fs::write(&files.hosts, "2001:db8::1 printer\n192.0.2.1 other\n").unwrap();
        std::fs::write(&files.resolv_conf, "nameserver 127.0.0.1\n").unwrap();
        resolver.current.lock().looked = Some(Instant::now() - LOOK);
        let found: Vec<_> = resolver.look_up("printer", &share).await.collect().await;
        assert_eq!(found, [V6]);
        assert!(resolver.sources().servers.is_some());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_systems_configuration_is_read_as_other_programs_read_it() {
        let (config, options) = configuration(
            b"# one\nsearch a.test b.test\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:3 timeout:2 attempts:4\n",
        )
        .unwrap();
        let addresses: Vec<_> = config
            .name_servers()
            .iter()
            .map(|server| server.ip)
            .collect();
        assert_eq!(
            addresses,
            [
                "192.0.2.53".parse::<IpAddr>().unwrap(),
                "2001:db8::53".parse().unwrap()
            ]
        );
        assert_eq!(config.search().len(), 2);
        assert_eq!((options.ndots, options.attempts), (3, 4));
        assert_eq!(options.timeout, Duration::from_secs(2));
        assert!(configuration(b"search a.test\n").is_err());
        assert!(configuration(b"nameserver nonsense\n").is_err());
    }
}
