//! Servers that choose what the browser can do and BoringSSL cannot: told apart, and met without it.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

mod loopback;

use std::io::{self, Write};

use ech_workers_boringssl::delegated_credential;
use ech_workers_boringssl::ec::{EcGroup, EcKey};
use ech_workers_boringssl::hash::MessageDigest;
use ech_workers_boringssl::nid::Nid;
use ech_workers_boringssl::pkey::PKey;
use ech_workers_boringssl::sign::Signer;
use ech_workers_boringssl::ssl::{
    CertificateCompressionAlgorithm, CertificateCompressor, SslContextBuilder, SslCredential,
};
use ech_workers_boringssl::x509::X509;
use ech_workers_tls::authority::Validity;
use ech_workers_tls::ech::config_list;
use ech_workers_tls::hello::ClientHello;
use ech_workers_tls::{ClientParameters, Ech, HandshakeError, Identity, Profile, Unsupported};
use loopback::{INNER, World, dial, key, parameters, ping, raw_echo, raw_server};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

#[tokio::test]
async fn a_server_with_a_delegated_credential_is_met_without_it() {
    let world = World::new();
    let identity = world.authority.issue(&[INNER], Validity::days(1)).unwrap();
    let mut context = raw_server(&identity);
    context.add_credential(&delegate(&identity)).unwrap();
    // Firefox 153 gets it in a compressed certificate.
    compress_certificates(&mut context);
    let address = raw_echo(context.build(), 4);
    for profile in ["firefox-120", "firefox-153"] {
        let parameters = ClientParameters {
            profile: Profile::named(profile).unwrap(),
            ..parameters(Ech::Off)
        };
        let error = dial(address, &world.client, parameters).await.unwrap_err();
        let unsupported = unsupported(&error);
        assert_eq!(unsupported, Unsupported::DelegatedCredential);
        let without = ClientParameters {
            without: Some(unsupported),
            ..parameters
        };
        ping(&mut dial(address, &world.client, without).await.unwrap()).await;
    }
}

#[test]
fn only_what_was_chosen_is_left_out_of_the_hello() {
    let world = World::new();
    let list = config_list(&[key(7)]);
    let with = |without| {
        let parameters = ClientParameters {
            without,
            ..parameters(Ech::List(&list))
        };
        let bytes = world.client.client_hello(parameters).unwrap();
        ClientHello::from_records(&bytes).unwrap().unwrap()
    };
    let browser = with(None);

    let hello = with(Some(Unsupported::Group(0x0101)));
    assert_eq!(hello.groups(), [0x1d, 0x17, 0x18, 0x19]);
    assert_eq!(hello.extension_ids(), browser.extension_ids());

    let hello = with(Some(Unsupported::DelegatedCredential));
    assert_eq!(hello.groups(), browser.groups());
    let mut expected = browser.extension_ids();
    expected.retain(|id| *id != 34);
    assert_eq!(hello.extension_ids(), expected);
}

#[tokio::test]
async fn a_finite_field_group_is_told_apart_from_one_that_nobody_offered() {
    assert_eq!(
        unsupported(&answer_with_retry_request(0x0100, Ech::Off).await),
        Unsupported::Group(0x0100)
    );
    let list = config_list(&[key(7)]);
    assert_eq!(
        unsupported(&answer_with_retry_request(0x0101, Ech::List(&list)).await),
        Unsupported::Group(0x0101)
    );
    for group in [0x0000, 0x001e, 0x0200, 0x001d] {
        let error = answer_with_retry_request(group, Ech::Off).await;
        assert!(matches!(error, HandshakeError::Tls(_)), "{error}");
    }
}

fn unsupported(error: &HandshakeError) -> Unsupported {
    match error {
        HandshakeError::Unsupported(unsupported) => *unsupported,
        other => panic!("{other}"),
    }
}

/// RFC 8446 section 4.1.3: the random that makes a ServerHello a HelloRetryRequest.
const HELLO_RETRY_REQUEST: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// How a client takes a HelloRetryRequest for a group.
async fn answer_with_retry_request(group: u16, ech: Ech<'_>) -> HandshakeError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let world = World::new();
    let (result, ()) = tokio::join!(dial(address, &world.client, parameters(ech)), async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut sent = vec![0; 4096];
        let length = tcp.read(&mut sent).await.unwrap();
        let hello = ClientHello::from_records(&sent[..length]).unwrap().unwrap();
        let [high, low] = group.to_be_bytes();
        // supported_versions 1.3, key_share.
        let extensions = [0, 12, 0, 43, 0, 2, 3, 4, 0, 51, 0, 2, high, low];
        let mut body = [&[3, 3][..], &HELLO_RETRY_REQUEST, &[32]].concat();
        body.extend_from_slice(&hello.session_id);
        body.extend_from_slice(&[0x13, 0x01, 0]);
        body.extend_from_slice(&extensions);
        let length = body.len() as u8;
        let record = [&[22, 3, 3, 0, length + 4, 2, 0, 0, length][..], &body].concat();
        tcp.try_write(&record).unwrap();
        let _ = tcp.read(&mut sent).await;
    });
    result.unwrap_err()
}

/// A credential delegated by an identity for a day (RFC 9345 section 4). Its certificate does not say that it may delegate,
/// for which a client that can do this would look.
fn delegate(identity: &Identity) -> SslCredential {
    const ECDSA_SECP256R1_SHA256: u16 = 0x0403;
    let chain = X509::stack_from_pem(&identity.chain_pem).unwrap();
    let certificate_key = PKey::private_key_from_pem(&identity.key_pem).unwrap();
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();

    let spki = key.public_key_to_der().unwrap();
    // Seconds since the certificate's beginning, which is an hour ago.
    let mut credential = 90_000u32.to_be_bytes().to_vec();
    credential.extend_from_slice(&ECDSA_SECP256R1_SHA256.to_be_bytes());
    credential.extend_from_slice(&(spki.len() as u32).to_be_bytes()[1..]);
    credential.extend_from_slice(&spki);
    credential.extend_from_slice(&ECDSA_SECP256R1_SHA256.to_be_bytes());

    let mut signed = vec![0x20; 64];
    signed.extend_from_slice(b"TLS, server delegated credentials\0");
    signed.extend_from_slice(&chain[0].to_der().unwrap());
    signed.extend_from_slice(&credential);
    let signature = Signer::new(MessageDigest::sha256(), &certificate_key)
        .unwrap()
        .sign_oneshot_to_vec(&signed)
        .unwrap();
    credential.extend_from_slice(&(signature.len() as u16).to_be_bytes());
    credential.extend_from_slice(&signature);
    delegated_credential(&chain, &credential, &key).unwrap()
}

fn compress_certificates(context: &mut SslContextBuilder) {
    struct Zlib;
    impl CertificateCompressor for Zlib {
        const ALGORITHM: CertificateCompressionAlgorithm = CertificateCompressionAlgorithm::ZLIB;
        const CAN_COMPRESS: bool = true;
        const CAN_DECOMPRESS: bool = false;

        fn compress<W: Write>(&self, input: &[u8], output: &mut W) -> io::Result<()> {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::ZlibEncoder::new(output, level);
            encoder.write_all(input)?;
            encoder.finish().map(drop)
        }
    }
    context.add_certificate_compression_algorithm(Zlib).unwrap();
}
