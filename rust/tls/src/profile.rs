//! Whose ClientHello is sent: tables, one for each browser.
//!
//! Adding a browser is adding a [`Profile`] to [`ALL`]; nothing else knows their names. The numbers are those on the wire
//! (the IANA TLS registries), in the wire's order.

/// A browser's ClientHello, and the HTTP header fields that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What it is called in the configuration.
    pub name: &'static str,
    /// Cipher suites.
    pub cipher_suites: &'static [u16],
    /// supported_groups.
    pub groups: &'static [u16],
    /// Groups for which a key share is sent.
    pub key_shares: &'static [u16],
    /// signature_algorithms.
    pub signature_algorithms: &'static [u16],
    /// delegated_credential (RFC 9345).
    pub delegated_credentials: &'static [u16],
    /// record_size_limit (RFC 8449).
    pub record_size_limit: u16,
    /// compress_certificate (RFC 8879), where the extension is sent: 1 zlib, 2 brotli, 3 zstd.
    pub certificate_compression: &'static [u16],
    /// Every extension of the hello, in order. `fe0d` is left out where ECH is switched off.
    pub extensions: &'static [u16],
    /// ALPN of a first contact and of HTTP requests.
    pub alpn: &'static [&'static str],
    /// Extensions that the WebSocket hello does not have; its ALPN is `http/1.1`.
    pub not_in_websocket: &'static [u16],
    /// The fields of a WebSocket upgrade request, in order. `{host}`, `{key}` and `{protocol}` stand for what they say;
    /// a field with `{protocol}` is left out where there is no token.
    pub websocket_headers: &'static [(&'static str, &'static str)],
    /// The fields of a DNS query by GET (RFC 8484), in order, as the browser's own resolver sends them. `{host}` stands
    /// for the authority; HTTP/2 carries neither Host nor Connection, HTTP/1.1 no TE.
    pub dns_get_headers: &'static [(&'static str, &'static str)],
    /// The same by POST; `{length}` is the body's.
    pub dns_post_headers: &'static [(&'static str, &'static str)],
    /// What stands around these fields in HTTP/2.
    pub http2: Http2,
}

/// How a browser's resolver opens an HTTP/2 connection (RFC 9113) and sends its first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2 {
    /// SETTINGS: identifiers and values, in order.
    pub settings: &'static [(u16, u32)],
    /// By how much the connection's window is made larger at once.
    pub window_update: u32,
    /// PRIORITY frames behind that: streams that are never opened and what they depend on (RFC 7540 section 5.3).
    pub priorities: &'static [(u32, Priority)],
    /// The request's stream.
    pub first_stream: u32,
    /// The priority in its HEADERS frame, if that has one.
    pub priority: Option<Priority>,
    /// The order of the pseudo-header fields.
    pub pseudo_header_fields: &'static [&'static str],
}

impl Http2 {
    /// The value that SETTINGS give for an identifier.
    pub fn setting(&self, identifier: u16) -> Option<u32> {
        let mut settings = self.settings.iter();
        settings.find_map(|&(id, value)| (id == identifier).then_some(value))
    }
}

/// A stream's priority (RFC 7540 section 6.3), never an exclusive one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priority {
    /// The stream that it depends on.
    pub depends_on: u32,
    /// The weight, as on the wire: one less than it stands for.
    pub weight: u8,
}

/// Which of a profile's hellos is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HelloForm {
    /// The first contact with a server, which may choose HTTP/2, and any HTTP request.
    FirstContact,
    /// A WebSocket to a server that is known to choose HTTP/2 without RFC 8441.
    WebSocket,
}

/// Whether a group is one of RFC 7919: codepoints 0x0100 to 0x01ff (section 2).
pub(crate) fn is_finite_field(group: &u16) -> bool {
    (0x0100..=0x01ff).contains(group)
}

/// Extension numbers that decide more than their place in the order.
pub(crate) mod extension {
    pub(crate) const STATUS_REQUEST: u16 = 5;
    pub(crate) const SIGNED_CERTIFICATE_TIMESTAMP: u16 = 18;
    pub(crate) const COMPRESS_CERTIFICATE: u16 = 27;
    pub(crate) const RECORD_SIZE_LIMIT: u16 = 28;
    pub(crate) const DELEGATED_CREDENTIAL: u16 = 34;
    pub(crate) const SESSION_TICKET: u16 = 35;
    pub(crate) const KEY_SHARE: u16 = 51;
    pub(crate) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
}

/// SETTINGS identifiers (RFC 9113 section 6.5.2).
pub mod setting {
    /// SETTINGS_HEADER_TABLE_SIZE.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// SETTINGS_ENABLE_PUSH.
    pub const ENABLE_PUSH: u16 = 2;
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// SETTINGS_MAX_FRAME_SIZE.
    pub const MAX_FRAME_SIZE: u16 = 5;
}

/// What stands for the newest Firefox.
const FIREFOX: &str = "firefox";

/// Every profile, the oldest of a browser first.
pub static ALL: &[Profile; 2] = &[FIREFOX_120, FIREFOX_153];

/// Firefox 120 (source: the uTLS parrot HelloFirefox_120).
const FIREFOX_120: Profile = Profile {
    name: "firefox-120",
    cipher_suites: &[
        0x1301, 0x1303, 0x1302, 0xc02b, 0xc02f, 0xcca9, 0xcca8, 0xc02c, 0xc030, 0xc00a, 0xc009,
        0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
    ],
    groups: &[0x001d, 0x0017, 0x0018, 0x0019, 0x0100, 0x0101],
    key_shares: &[0x001d, 0x0017],
    signature_algorithms: FIREFOX_SIGNATURE_ALGORITHMS,
    delegated_credentials: &[0x0403, 0x0503, 0x0603, 0x0203],
    record_size_limit: 0x4001,
    certificate_compression: &[],
    extensions: &[
        0, 23, 0xff01, 10, 11, 35, 16, 5, 34, 51, 43, 13, 45, 28, 0xfe0d,
    ],
    alpn: &["h2", "http/1.1"],
    not_in_websocket: &[],
    websocket_headers: &[
        ("Host", "{host}"),
        (
            "User-Agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0",
        ),
        ("Accept", "*/*"),
        ("Accept-Language", "en-US,en;q=0.5"),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Sec-WebSocket-Version", "13"),
        ("Origin", "https://{host}"),
        ("Sec-WebSocket-Protocol", "{protocol}"),
        ("Sec-WebSocket-Key", "{key}"),
        ("Connection", "keep-alive, Upgrade"),
        ("Sec-Fetch-Dest", "empty"),
        ("Sec-Fetch-Mode", "websocket"),
        ("Sec-Fetch-Site", "same-origin"),
        ("Pragma", "no-cache"),
        ("Cache-Control", "no-cache"),
        ("Upgrade", "websocket"),
    ],
    dns_get_headers: FIREFOX_DNS_GET,
    dns_post_headers: FIREFOX_DNS_POST,
    // By Firefox's source of that time, like the priority groups; not captured.
    http2: Http2 {
        settings: &[
            (setting::HEADER_TABLE_SIZE, 65_536),
            (setting::INITIAL_WINDOW_SIZE, 131_072),
            (setting::MAX_FRAME_SIZE, 16_384),
        ],
        window_update: FIREFOX_WINDOW_UPDATE,
        priorities: FIREFOX_PRIORITY_GROUPS,
        first_stream: 15,
        // Of the background group, as what belongs to no tab is.
        priority: Some(Priority {
            depends_on: 7,
            weight: 21,
        }),
        pseudo_header_fields: FIREFOX_PSEUDO_HEADER_FIELDS,
    },
};

/// Firefox 153, an extended support release.
const FIREFOX_153: Profile = Profile {
    name: "firefox-153",
    cipher_suites: &[
        0x1301, 0x1303, 0x1302, 0xc02b, 0xc02f, 0xcca9, 0xcca8, 0xc02c, 0xc030, 0xc00a, 0xc013,
        0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
    ],
    groups: &[0x11ec, 0x001d, 0x0017, 0x0018, 0x0019, 0x0100, 0x0101],
    key_shares: &[0x11ec, 0x001d, 0x0017],
    signature_algorithms: FIREFOX_SIGNATURE_ALGORITHMS,
    delegated_credentials: &[0x0403, 0x0503, 0x0603, 0x0203],
    record_size_limit: 0x4001,
    certificate_compression: &[1, 2, 3],
    extensions: &[
        0, 23, 0xff01, 10, 11, 35, 16, 5, 34, 18, 51, 43, 13, 45, 28, 27, 0xfe0d,
    ],
    alpn: &["h2", "http/1.1"],
    not_in_websocket: &[extension::COMPRESS_CERTIFICATE],
    websocket_headers: &[
        ("Host", "{host}"),
        (
            "User-Agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0",
        ),
        ("Accept", "*/*"),
        ("Accept-Language", "en-US,en;q=0.9"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Sec-WebSocket-Version", "13"),
        ("Origin", "https://{host}"),
        ("Sec-WebSocket-Protocol", "{protocol}"),
        ("Sec-WebSocket-Key", "{key}"),
        ("Connection", "Upgrade"),
        ("Sec-Fetch-Dest", "empty"),
        ("Sec-Fetch-Mode", "websocket"),
        ("Sec-Fetch-Site", "same-origin"),
        ("Pragma", "no-cache"),
        ("Cache-Control", "no-cache"),
        ("Upgrade", "websocket"),
    ],
    dns_get_headers: FIREFOX_DNS_GET,
    dns_post_headers: FIREFOX_DNS_POST,
    // Captured from 153.7.
    http2: Http2 {
        settings: &[
            (setting::HEADER_TABLE_SIZE, 65_536),
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, 131_072),
            (setting::MAX_FRAME_SIZE, 16_384),
        ],
        window_update: FIREFOX_WINDOW_UPDATE,
        priorities: &[],
        first_stream: 3,
        priority: Some(Priority {
            depends_on: 0,
            weight: 21,
        }),
        pseudo_header_fields: FIREFOX_PSEUDO_HEADER_FIELDS,
    },
};

const FIREFOX_SIGNATURE_ALGORITHMS: &[u16] = &[
    0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201,
];

/// It makes a window of 12 MiB of the 65,535 bytes that a connection begins with.
const FIREFOX_WINDOW_UPDATE: u32 = (12 << 20) - 65_535;

const FIREFOX_PSEUDO_HEADER_FIELDS: &[&str] = &[":method", ":path", ":authority", ":scheme"];

/// Leaders, others, background, speculative, followers, urgent.
const FIREFOX_PRIORITY_GROUPS: &[(u32, Priority)] = &[
    (
        3,
        Priority {
            depends_on: 0,
            weight: 200,
        },
    ),
    (
        5,
        Priority {
            depends_on: 0,
            weight: 100,
        },
    ),
    (
        7,
        Priority {
            depends_on: 0,
            weight: 0,
        },
    ),
    (
        9,
        Priority {
            depends_on: 7,
            weight: 0,
        },
    ),
    (
        11,
        Priority {
            depends_on: 3,
            weight: 0,
        },
    ),
    (
        13,
        Priority {
            depends_on: 0,
            weight: 240,
        },
    ),
];

/// Firefox's resolver names no browser and no language (captured from 153.7).
const FIREFOX_DNS_GET: &[(&str, &str)] = &[
    ("Host", "{host}"),
    ("Accept", "application/dns-message"),
    ("Accept-Encoding", ""),
    ("Connection", "keep-alive"),
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache"),
    ("TE", "trailers"),
];

const FIREFOX_DNS_POST: &[(&str, &str)] = &[
    ("Host", "{host}"),
    ("Accept", "application/dns-message"),
    ("Accept-Encoding", ""),
    ("Content-Type", "application/dns-message"),
    ("Content-Length", "{length}"),
    ("Cache-Control", "no-store, no-cache"),
    ("Connection", "keep-alive"),
    ("Pragma", "no-cache"),
    ("TE", "trailers"),
];

impl Profile {
    /// The profile of this name; `firefox` is the newest of that browser.
    pub fn named(name: &str) -> Option<&'static Self> {
        if name == FIREFOX {
            return ALL
                .iter()
                .rev()
                .find(|profile| profile.name.starts_with("firefox-"));
        }
        ALL.iter().find(|profile| profile.name == name)
    }

    /// The profile of measurements and tests that choose none.
    pub fn standard() -> &'static Self {
        &ALL[0]
    }

    /// The extensions of a form of its hello, in order, with `fe0d` if `ech`.
    pub fn extensions(&self, form: HelloForm, ech: bool) -> Vec<u16> {
        self.extensions
            .iter()
            .copied()
            .filter(|id| ech || *id != extension::ENCRYPTED_CLIENT_HELLO)
            .filter(|id| form != HelloForm::WebSocket || !self.not_in_websocket.contains(id))
            .collect()
    }

    /// The ALPN protocols of a form of its hello.
    pub fn alpn(&self, form: HelloForm) -> &'static [&'static str] {
        match form {
            HelloForm::WebSocket => &["http/1.1"],
            HelloForm::FirstContact => self.alpn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_name() {
        for profile in ALL {
            assert_eq!(Profile::named(profile.name), Some(profile));
        }
        assert_eq!(Profile::named("netscape-4"), None);
        assert_eq!(Profile::standard().name, "firefox-120");
    }

    #[test]
    fn the_headers_name_the_same_browser_as_the_profile() {
        for profile in ALL {
            let mut headers = profile.websocket_headers.iter();
            let (_, agent) = headers.find(|(name, _)| *name == "User-Agent").unwrap();
            let version = profile.name.strip_prefix("firefox-").unwrap();
            assert!(agent.contains(&format!("rv:{version}.0)")), "{agent}");
            assert!(agent.ends_with(&format!(" Firefox/{version}.0")), "{agent}");
        }
    }

    #[test]
    fn key_shares_are_for_supported_groups_in_their_order() {
        for profile in ALL {
            let mut groups = profile.groups.iter();
            for share in profile.key_shares {
                assert!(groups.any(|group| group == share), "{}", profile.name);
            }
        }
    }
}
