//! Whatever a client sends first: the parser of its hello neither panics nor changes its mind when more bytes follow.
#![no_main]

use ech_workers_tls::hello::ClientHello;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(hello)) = ClientHello::from_records(bytes) else {
        return;
    };
    assert!(hello.wire_length <= bytes.len());
    let exact = ClientHello::from_records(&bytes[..hello.wire_length]);
    assert_eq!(exact.as_ref(), Ok(&Some(hello.clone())));
    assert_eq!(
        ClientHello::from_records(&bytes[..hello.wire_length - 1]),
        Ok(None)
    );

    for id in hello.extension_ids() {
        assert!(hello.extension(id).is_some());
    }
    let _ = hello.server_name();
    let _ = hello.alpn();
    let _ = hello.groups();
    let _ = hello.signature_algorithms();
    let _ = hello.point_formats();
    let _ = hello.supported_versions();
    let _ = hello.key_shares();
    let _ = hello.ech();
});
