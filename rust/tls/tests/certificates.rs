//! Whom a client believes, and certificates that come compressed.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

mod loopback;

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use ech_workers_boringssl::ssl::{CertificateCompressionAlgorithm, CertificateCompressor};
use ech_workers_tls::authority::{CertificateAuthority, Validity};
use ech_workers_tls::{
    CertificateProblem, ClientContext, ClientParameters, Ech, HandshakeError, Identity, Profile,
    ServerContext, ServerError, Trust, TrustError,
};
use loopback::{INNER, World, dial, echo, parameters, ping, raw_echo, raw_server, trusting};

async fn problem(client: &ClientContext, identity: Identity) -> CertificateProblem {
    let server = ServerContext::new(&[identity]).unwrap();
    let address = echo(&server).await;
    match dial(address, client, parameters(Ech::Off)).await {
        Err(HandshakeError::Certificate {
            problem,
            outer: false,
        }) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_fault_of_a_certificate_has_its_own_name() {
    let world = World::new();
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    let issue = |names: &[&str], not_before, not_after| {
        let validity = Validity {
            not_before,
            not_after,
        };
        world.authority.issue(names, validity).unwrap()
    };
    let client = &world.client;
    assert_eq!(
        problem(client, issue(&[INNER], now - 2 * hour, now - hour)).await,
        CertificateProblem::Expired
    );
    assert_eq!(
        problem(client, issue(&[INNER], now + hour, now + 2 * hour)).await,
        CertificateProblem::NotYetValid
    );
    assert_eq!(
        problem(client, issue(&["other.test"], now - hour, now + hour)).await,
        CertificateProblem::NameMismatch
    );
    assert_eq!(
        problem(client, issue(&[], now - hour, now + hour)).await,
        CertificateProblem::NameMismatch
    );
    let stranger = CertificateAuthority::new().unwrap();
    assert_eq!(
        problem(client, stranger.issue(&[INNER], Validity::days(1)).unwrap()).await,
        CertificateProblem::UnknownIssuer
    );
}

#[tokio::test]
async fn an_address_is_looked_for_among_the_certificates_addresses() {
    let world = World::new();
    let identity = world
        .authority
        .issue(&["127.0.0.1", "::1"], Validity::days(1))
        .unwrap();
    let address = echo(&ServerContext::new(&[identity]).unwrap()).await;
    for name in ["127.0.0.1", "::1"] {
        let parameters = ClientParameters {
            server_name: name,
            ..parameters(Ech::Off)
        };
        ping(&mut dial(address, &world.client, parameters).await.unwrap()).await;
    }
    let wrong = ClientParameters {
        server_name: "127.0.0.2",
        ..parameters(Ech::Off)
    };
    let error = dial(address, &world.client, wrong).await.unwrap_err();
    assert!(
        matches!(
            error,
            HandshakeError::Certificate {
                problem: CertificateProblem::NameMismatch,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn the_certificate_that_suits_the_name_is_shown() {
    let world = World::new();
    let address = echo(&world.server).await;
    for name in ["public.test", "secret.test"] {
        let parameters = ClientParameters {
            server_name: name,
            ..parameters(Ech::Off)
        };
        ping(&mut dial(address, &world.client, parameters).await.unwrap()).await;
    }
}

#[tokio::test]
async fn the_systems_roots_do_not_include_a_private_one() {
    let world = World::new();
    let system = ClientContext::new(&Trust {
        system: true,
        extra_pem: Vec::new(),
    })
    .unwrap();
    let identity = world.authority.issue(&[INNER], Validity::days(1)).unwrap();
    assert_eq!(
        problem(&system, identity.clone()).await,
        CertificateProblem::UnknownIssuer
    );
    let both = ClientContext::new(&Trust {
        system: true,
        extra_pem: vec![world.authority.root_pem().unwrap()],
    })
    .unwrap();
    let address = echo(&ServerContext::new(&[identity]).unwrap()).await;
    ping(&mut dial(address, &both, parameters(Ech::Off)).await.unwrap()).await;
}

#[test]
fn roots_that_hold_nothing_are_named() {
    let trust = |pem: &[u8]| {
        ClientContext::new(&Trust {
            system: false,
            extra_pem: vec![pem.to_vec()],
        })
    };
    assert!(matches!(
        trust(b"not a certificate"),
        Err(TrustError::Pem { index: 0, .. })
    ));
    assert!(matches!(
        trust(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        Err(TrustError::Pem { index: 0, .. })
    ));
    assert!(matches!(
        ClientContext::new(&Trust::default()),
        Err(TrustError::Empty)
    ));
}

#[test]
fn a_server_says_which_part_of_its_identity_is_wrong() {
    let authority = CertificateAuthority::new().unwrap();
    let issue = || authority.issue(&[INNER], Validity::days(1)).unwrap();
    let identity = |chain_pem: Vec<u8>, key_pem: Vec<u8>| [Identity { chain_pem, key_pem }];
    let (one, two) = (issue(), issue());
    assert!(matches!(
        ServerContext::new(&identity(b"nothing".to_vec(), one.key_pem.clone())),
        Err(ServerError::Chain(_))
    ));
    assert!(matches!(
        ServerContext::new(&identity(one.chain_pem.clone(), b"nothing".to_vec())),
        Err(ServerError::Key(_))
    ));
    assert!(matches!(
        ServerContext::new(&identity(one.chain_pem, two.key_pem)),
        Err(ServerError::Mismatch)
    ));
    assert!(matches!(ServerContext::new(&[]), Err(ServerError::Empty)));
}

struct Zlib;
struct Brotli;
struct Zstd;
/// Says that it is zlib and is not.
struct Nonsense;

macro_rules! compressor {
    ($type:ident, $algorithm:ident, |$input:ident, $output:ident| $compress:expr) => {
        impl CertificateCompressor for $type {
            const ALGORITHM: CertificateCompressionAlgorithm =
                CertificateCompressionAlgorithm::$algorithm;
            const CAN_COMPRESS: bool = true;
            const CAN_DECOMPRESS: bool = false;

            fn compress<W: Write>(&self, $input: &[u8], $output: &mut W) -> io::Result<()> {
                $compress
            }
        }
    };
}

compressor!(Zlib, ZLIB, |input, output| {
    let mut encoder = flate2::write::ZlibEncoder::new(output, flate2::Compression::default());
    encoder.write_all(input)?;
    encoder.finish().map(drop)
});
compressor!(Brotli, BROTLI, |input, output| {
    brotli::BrotliCompress(&mut &input[..], output, &Default::default()).map(drop)
});
compressor!(Zstd, ZSTD, |input, output| {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    output.write_all(&ruzstd::encoding::compress_to_vec(input, level))
});
compressor!(Nonsense, ZLIB, |input, output| output.write_all(input));

#[tokio::test]
async fn compressed_certificates_are_unpacked_by_the_profile_that_asks_for_them() {
    let authority = CertificateAuthority::new().unwrap();
    let client = trusting(&authority);
    let identity = authority.issue(&[INNER], Validity::days(1)).unwrap();
    let firefox_153 = ClientParameters {
        profile: Profile::named("firefox-153").unwrap(),
        ..parameters(Ech::Off)
    };
    for number in 1..=4 {
        let mut server = raw_server(&identity);
        match number {
            1 => server.add_certificate_compression_algorithm(Zlib),
            2 => server.add_certificate_compression_algorithm(Brotli),
            3 => server.add_certificate_compression_algorithm(Zstd),
            _ => server.add_certificate_compression_algorithm(Nonsense),
        }
        .unwrap();
        let address = raw_echo(server.build(), 2);
        let result = dial(address, &client, firefox_153).await;
        if number == 4 {
            assert!(matches!(result, Err(HandshakeError::Tls(_))), "{result:?}");
        } else {
            ping(&mut result.unwrap()).await;
        }
        // The other profile asks for none and gets none.
        ping(&mut dial(address, &client, parameters(Ech::Off)).await.unwrap()).await;
    }
}
