//! What an observer sees first: every field of the ClientHello, against the browsers' own.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

mod loopback;

use std::collections::HashSet;

use ech_workers_tls::authority::Validity;
use ech_workers_tls::ech::config_list;
use ech_workers_tls::hello::ClientHello;
use ech_workers_tls::{ClientParameters, Ech, HelloForm, Profile};
use loopback::{INNER, PUBLIC, World, dial, key, parameters, ping, raw_echo, raw_server};

const FIREFOX_120_CIPHERS: [u16; 17] = [
    0x1301, 0x1303, 0x1302, 0xc02b, 0xc02f, 0xcca9, 0xcca8, 0xc02c, 0xc030, 0xc00a, 0xc009, 0xc013,
    0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
];

fn hello(world: &World, parameters: ClientParameters<'_>) -> ClientHello {
    let bytes = world.client.client_hello(parameters).unwrap();
    let hello = ClientHello::from_records(&bytes).unwrap().unwrap();
    assert_eq!(
        hello.wire_length,
        bytes.len(),
        "one flight, nothing behind it"
    );
    hello
}

fn of(profile: &str, form: HelloForm, ech: Ech<'_>) -> ClientHello {
    hello(
        &World::new(),
        ClientParameters {
            profile: Profile::named(profile).unwrap(),
            form,
            ..parameters(ech)
        },
    )
}

/// The fields that both profiles have in common.
fn assert_common(hello: &ClientHello, name: &str, alpn: &[&str]) {
    assert_eq!(hello.record_version, 0x0301);
    assert_eq!(hello.legacy_version, 0x0303);
    assert_eq!(hello.session_id.len(), 32);
    assert_eq!(hello.compression_methods, [0]);
    assert_eq!(hello.server_name(), Some(name));
    assert_eq!(hello.extension(23), Some(&[][..]), "extended_master_secret");
    assert_eq!(
        hello.extension(0xff01),
        Some(&[0][..]),
        "renegotiation_info"
    );
    assert_eq!(hello.point_formats(), [0]);
    assert_eq!(hello.extension(35), Some(&[][..]), "session_ticket");
    assert_eq!(hello.alpn(), alpn);
    assert_eq!(
        hello.extension(5),
        Some(&[1, 0, 0, 0, 0][..]),
        "status_request"
    );
    assert_eq!(
        hello.extension(34),
        Some(&[0, 8, 4, 3, 5, 3, 6, 3, 2, 3][..]),
        "delegated_credential"
    );
    assert_eq!(hello.supported_versions(), [0x0304, 0x0303]);
    assert_eq!(
        hello.signature_algorithms(),
        [
            0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201
        ]
    );
    assert_eq!(
        hello.extension(45),
        Some(&[1, 1][..]),
        "psk_key_exchange_modes"
    );
    assert_eq!(
        hello.extension(28),
        Some(&[0x40, 0x01][..]),
        "record_size_limit"
    );
}

#[test]
fn the_hello_of_firefox_120_is_its_table_field_by_field() {
    let list = config_list(&[key(7)]);
    let hello = of("firefox-120", HelloForm::FirstContact, Ech::List(&list));
    assert_common(&hello, PUBLIC, &["h2", "http/1.1"]);
    assert_eq!(hello.cipher_suites, FIREFOX_120_CIPHERS);
    assert_eq!(
        hello.extension_ids(),
        [
            0, 23, 0xff01, 10, 11, 35, 16, 5, 34, 51, 43, 13, 45, 28, 0xfe0d
        ]
    );
    assert_eq!(hello.groups(), [0x1d, 0x17, 0x18, 0x19, 0x0100, 0x0101]);
    assert_eq!(hello.key_shares(), [(0x1d, 32), (0x17, 65)]);
    let ech = hello.ech().unwrap();
    assert_eq!(
        (ech.config_id, ech.kdf, ech.encapsulated_length),
        (7, 1, 32)
    );
}

#[test]
fn the_websocket_hello_of_firefox_120_offers_http_1_1_alone() {
    let list = config_list(&[key(7)]);
    let first = of("firefox-120", HelloForm::FirstContact, Ech::List(&list));
    let websocket = of("firefox-120", HelloForm::WebSocket, Ech::List(&list));
    assert_common(&websocket, PUBLIC, &["http/1.1"]);
    assert_eq!(websocket.extension_ids(), first.extension_ids());
    assert_eq!(websocket.cipher_suites, first.cipher_suites);
}

#[test]
fn the_hello_of_firefox_153_is_its_table_field_by_field() {
    let list = config_list(&[key(7)]);
    let hello = of("firefox-153", HelloForm::FirstContact, Ech::List(&list));
    assert_common(&hello, PUBLIC, &["h2", "http/1.1"]);
    let ciphers: Vec<u16> = FIREFOX_120_CIPHERS
        .into_iter()
        .filter(|id| *id != 0xc009)
        .collect();
    assert_eq!(hello.cipher_suites, ciphers);
    assert_eq!(
        hello.extension_ids(),
        [
            0, 23, 0xff01, 10, 11, 35, 16, 5, 34, 18, 51, 43, 13, 45, 28, 27, 0xfe0d
        ]
    );
    assert_eq!(
        hello.groups(),
        [0x11ec, 0x1d, 0x17, 0x18, 0x19, 0x0100, 0x0101]
    );
    assert_eq!(hello.key_shares(), [(0x11ec, 1216), (0x1d, 32), (0x17, 65)]);
    assert_eq!(hello.extension(18), Some(&[][..]));
    assert_eq!(hello.extension(27), Some(&[6, 0, 1, 0, 2, 0, 3][..]));
}

#[test]
fn the_websocket_hello_of_firefox_153_has_no_certificate_compression() {
    let list = config_list(&[key(7)]);
    let hello = of("firefox-153", HelloForm::WebSocket, Ech::List(&list));
    assert_common(&hello, PUBLIC, &["http/1.1"]);
    assert_eq!(
        hello.extension_ids(),
        [
            0, 23, 0xff01, 10, 11, 35, 16, 5, 34, 18, 51, 43, 13, 45, 28, 0xfe0d
        ]
    );
}

#[test]
fn without_ech_the_hello_is_the_same_less_its_last_extension() {
    for profile in ech_workers_tls::profile::ALL {
        for form in [HelloForm::FirstContact, HelloForm::WebSocket] {
            let list = config_list(&[key(7)]);
            let with = of(profile.name, form, Ech::List(&list));
            let without = of(profile.name, form, Ech::Off);
            assert_eq!(without.server_name(), Some(INNER));
            let mut expected = with.extension_ids();
            assert_eq!(expected.pop(), Some(0xfe0d));
            assert_eq!(without.extension_ids(), expected, "{}", profile.name);
            for (id, body) in &without.extensions {
                // Names, key shares and random values differ.
                if ![0, 51].contains(id) {
                    assert_eq!(with.extension(*id), Some(&body[..]), "extension {id}");
                }
            }
        }
    }
}

#[test]
fn firefox_153_has_one_x25519_key_in_both_of_its_shares_that_hold_one() {
    let world = World::new();
    let list = config_list(&[key(7)]);
    let mut seen = HashSet::new();
    for form in [HelloForm::FirstContact, HelloForm::WebSocket] {
        for ech in [Ech::Off, Ech::List(&list)] {
            let hello = hello(
                &world,
                ClientParameters {
                    profile: Profile::named("firefox-153").unwrap(),
                    form,
                    ..parameters(ech)
                },
            );
            // The list's length; then of each share the group, a length and the key. In the hybrid, ML-KEM's part is first.
            let shares = hello.extension(51).unwrap();
            let (hybrid, rest) = shares[6..].split_at(1216);
            assert_eq!(rest[..4], [0x00, 0x1d, 0, 32]);
            let alone = &rest[4..36];
            assert_eq!(&hybrid[1184..], alone);
            assert!(seen.insert(alone.to_vec()), "a key of two hellos");
        }
    }
}

#[tokio::test]
async fn firefox_153_agrees_on_a_key_whichever_share_the_server_takes() {
    let world = World::new();
    let identity = world.authority.issue(&[INNER], Validity::days(1)).unwrap();
    for group in ["X25519MLKEM768", "X25519", "P-256", "P-384"] {
        let mut server = raw_server(&identity);
        server.set_curves_list(group).unwrap();
        let address = raw_echo(server.build(), 1);
        let parameters = ClientParameters {
            profile: Profile::named("firefox-153").unwrap(),
            ..parameters(Ech::Off)
        };
        let mut tls = dial(address, &world.client, parameters).await.unwrap();
        assert_eq!(tls.info().group, group);
        assert_eq!(tls.info().hello_retry, group == "P-384");
        ping(&mut tls).await;
    }
}

#[test]
fn two_hellos_share_no_key_and_no_random() {
    let world = World::new();
    let (one, two) = (
        hello(&world, parameters(Ech::Off)),
        hello(&world, parameters(Ech::Off)),
    );
    assert_ne!(one.session_id, two.session_id);
    assert_ne!(one.extension(51), two.extension(51));
}

#[test]
fn an_ip_address_is_not_sent_as_a_name() {
    let hello = hello(
        &World::new(),
        ClientParameters {
            server_name: "192.0.2.1",
            ..parameters(Ech::Off)
        },
    );
    assert_eq!(hello.extension(0), None);
}

#[test]
fn the_length_of_the_encrypted_hello_does_not_tell_the_length_of_the_name() {
    let world = World::new();
    let list = config_list(&[key(7)]);
    let length = |name| {
        let hello = hello(
            &world,
            ClientParameters {
                server_name: name,
                ..parameters(Ech::List(&list))
            },
        );
        hello.ech().unwrap().payload_length
    };
    assert_eq!(
        length("a.test"),
        length("a-much-longer-name.of-a-server.test")
    );
}

#[test]
fn the_fingerprints_of_the_profiles_are_the_browsers() {
    use ech_workers_tls::fingerprint::{ja3_text, ja4};

    let list = config_list(&[key(7)]);
    let firefox_120 = of("firefox-120", HelloForm::FirstContact, Ech::List(&list));
    // As published for Firefox 120 (and 118 to 123).
    assert_eq!(ja4(&firefox_120), "t13d1715h2_5b57614c22b0_5c2c66f702b0");
    assert_eq!(
        ja3_text(&firefox_120),
        "771,4865-4867-4866-49195-49199-52393-52392-49196-49200-49162-49161-49171-49172-156-157-47-53,\
         0-23-65281-10-11-35-16-5-34-51-43-13-45-28-65037,29-23-24-25-256-257,0"
    );
    let firefox_153 = of("firefox-153", HelloForm::FirstContact, Ech::List(&list));
    assert!(ja4(&firefox_153).starts_with("t13d1617h2_"));
}
