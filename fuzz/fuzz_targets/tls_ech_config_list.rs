//! Whatever stands in an HTTPS record for ECH: a clear error or a hello, and never the real name in clear.
#![no_main]

use std::sync::LazyLock;

use ech_workers_tls::ech::{ConfigList, decode_list};
use ech_workers_tls::hello::ClientHello;
use ech_workers_tls::{ClientContext, ClientParameters, Ech, HelloForm, Profile, Trust};
use libfuzzer_sys::fuzz_target;

const REAL_NAME: &str = "the-real-name.example";

static CONTEXT: LazyLock<ClientContext> = LazyLock::new(|| {
    let authority = ech_workers_tls::authority::CertificateAuthority::new().expect("an authority");
    let root = authority.root_pem().expect("a root");
    ClientContext::new(&Trust {
        system: false,
        extra_pem: vec![root],
    })
    .expect("a context")
});

fuzz_target!(|input: &[u8]| {
    let parsed = ConfigList::parse(input);
    if let Ok(list) = decode_list(input) {
        ConfigList::parse(&list).expect("a decoded list is a list");
    } else {
        assert!(parsed.is_err());
    }

    let hello = CONTEXT.client_hello(ClientParameters {
        profile: Profile::standard(),
        form: HelloForm::WebSocket,
        server_name: REAL_NAME,
        ech: Ech::List(input),
        without: None,
        session_key: None,
    });
    let Ok(list) = parsed else {
        assert!(hello.is_err(), "a hello from a list that cannot be used");
        return;
    };
    assert!(
        list.configs()
            .iter()
            .all(|config| config.encoded().len() < input.len())
    );
    let Ok(hello) = hello else {
        return;
    };
    let name = REAL_NAME.as_bytes();
    assert!(
        !hello.windows(name.len()).any(|window| window == name),
        "the real name in clear"
    );
    let hello = ClientHello::from_records(&hello)
        .expect("a hello")
        .expect("a whole hello");
    let outer = hello.ech().expect("an encrypted_client_hello");
    let used = list
        .configs()
        .iter()
        .find(|config| config.id == outer.config_id);
    let used = used.expect("a configuration of the list");
    assert!(used.cipher_suites.contains(&(outer.kdf, outer.aead)));
    assert!(
        list.configs()
            .iter()
            .any(|config| Some(&*config.public_name) == hello.server_name())
    );
});
