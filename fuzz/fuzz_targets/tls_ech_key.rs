//! Whatever stands in a key file: a clear error, or keys that write the same file again.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use ech_workers_tls::ech::{ConfigList, EchKey, config_list};
use libfuzzer_sys::fuzz_target;

/// A right one to begin with: no mutation finds a private key that belongs to its configuration.
static RIGHT: LazyLock<String> = LazyLock::new(|| {
    EchKey::generate(7, "public.example", 64)
        .expect("a key")
        .to_pem()
});

#[derive(Arbitrary, Debug)]
enum File {
    Edited {
        edits: Vec<(u16, u8)>,
        behind: String,
    },
    Text(String),
}

fuzz_target!(|file: File| {
    let text = match file {
        File::Edited { edits, behind } => {
            let mut bytes = RIGHT.clone().into_bytes();
            for (at, byte) in edits {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            String::from_utf8_lossy(&bytes).into_owned() + &behind
        }
        File::Text(text) => text,
    };
    let Ok(keys) = EchKey::from_pem(&text) else {
        return;
    };
    ConfigList::parse(&config_list(&keys)).expect("a list of the keys read");
    for key in keys {
        let again = EchKey::from_pem(&key.to_pem()).expect("a file of our own");
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].config(), key.config());
    }
});
