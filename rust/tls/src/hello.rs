//! A ClientHello as it stands on the wire (RFC 8446 section 4.1.2).

use crate::wire::Reader;

/// The longest ClientHello that is looked at; BoringSSL takes no longer one either.
const MAX_HELLO: usize = 64 * 1024;

/// A parsed ClientHello; the outer one, where there are two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// legacy_version.
    pub legacy_version: u16,
    /// legacy_session_id.
    pub session_id: Vec<u8>,
    /// cipher_suites.
    pub cipher_suites: Vec<u16>,
    /// legacy_compression_methods.
    pub compression_methods: Vec<u8>,
    /// Extensions in order, each with its body.
    pub extensions: Vec<(u16, Vec<u8>)>,
    /// Version of the first record.
    pub record_version: u16,
    /// Its length on the wire, record headers included.
    pub wire_length: usize,
}

/// The encrypted_client_hello extension of a ClientHelloOuter (RFC 9849 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchOuter {
    /// HPKE KDF.
    pub kdf: u16,
    /// HPKE AEAD.
    pub aead: u16,
    /// Which configuration was used.
    pub config_id: u8,
    /// Length of the encapsulated key; 0 in the hello after a HelloRetryRequest.
    pub encapsulated_length: usize,
    /// Length of the encrypted ClientHelloInner.
    pub payload_length: usize,
}

/// The bytes are no ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a ClientHello")]
pub struct NotAClientHello;

impl ClientHello {
    /// Parses the records that a client sends first. `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`NotAClientHello`] if it is something else, or malformed.
    pub fn from_records(mut bytes: &[u8]) -> Result<Option<Self>, NotAClientHello> {
        let record_version = match bytes {
            [22, major, minor, ..] => u16::from_be_bytes([*major, *minor]),
            [] | [22] | [22, _] => return Ok(None),
            _ => return Err(NotAClientHello),
        };
        let mut message = Vec::new();
        let mut wire_length = 0;
        loop {
            if let [1, high, middle, low, body @ ..] = &message[..] {
                let length =
                    4 + (usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low));
                if length > MAX_HELLO || message.len() > length {
                    return Err(NotAClientHello);
                }
                if message.len() == length {
                    let hello = Self::parse(body).ok_or(NotAClientHello)?;
                    return Ok(Some(Self {
                        record_version,
                        wire_length,
                        ..hello
                    }));
                }
            }
            if message.first().is_some_and(|kind| *kind != 1) {
                return Err(NotAClientHello);
            }
            let [kind, _, _, high, low, rest @ ..] = bytes else {
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if *kind != 22 || length == 0 {
                return Err(NotAClientHello);
            }
            let Some((fragment, rest)) = rest.split_at_checked(length) else {
                return Ok(None);
            };
            message.extend_from_slice(fragment);
            wire_length += 5 + length;
            bytes = rest;
        }
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let legacy_version = reader.u16()?;
        reader.take(32)?;
        let session_id = reader.vector8()?.rest().to_vec();
        let cipher_suites = list_u16(reader.vector16()?)?;
        let compression_methods = reader.vector8()?.rest().to_vec();
        let mut extensions = Vec::new();
        if !reader.is_empty() {
            let mut list = reader.vector16()?;
            while !list.is_empty() {
                extensions.push((list.u16()?, list.vector16()?.rest().to_vec()));
            }
        }
        reader.is_empty().then_some(Self {
            legacy_version,
            session_id,
            cipher_suites,
            compression_methods,
            extensions,
            record_version: 0,
            wire_length: 0,
        })
    }

    /// The body of an extension.
    pub fn extension(&self, id: u16) -> Option<&[u8]> {
        self.extensions
            .iter()
            .find(|(found, _)| *found == id)
            .map(|(_, body)| &body[..])
    }

    /// The numbers of the extensions, in order.
    pub fn extension_ids(&self) -> Vec<u16> {
        self.extensions.iter().map(|(id, _)| *id).collect()
    }

    /// server_name.
    pub fn server_name(&self) -> Option<&str> {
        let mut list = Reader::new(self.extension(0)?).vector16()?;
        (list.u8()? == 0).then_some(())?;
        std::str::from_utf8(list.vector16()?.rest()).ok()
    }

    /// The protocols of application_layer_protocol_negotiation.
    pub fn alpn(&self) -> Vec<String> {
        let mut protocols = Vec::new();
        if let Some(mut list) = self
            .extension(16)
            .and_then(|body| Reader::new(body).vector16())
        {
            while let Some(protocol) = list.vector8() {
                protocols.push(String::from_utf8_lossy(protocol.rest()).into_owned());
            }
        }
        protocols
    }

    /// supported_groups.
    pub fn groups(&self) -> Vec<u16> {
        self.list16(10)
    }

    /// signature_algorithms.
    pub fn signature_algorithms(&self) -> Vec<u16> {
        self.list16(13)
    }

    /// ec_point_formats.
    pub fn point_formats(&self) -> Vec<u8> {
        self.extension(11)
            .and_then(|body| Reader::new(body).vector8())
            .map(|list| list.rest().to_vec())
            .unwrap_or_default()
    }

    /// supported_versions.
    pub fn supported_versions(&self) -> Vec<u16> {
        self.extension(43)
            .and_then(|body| Reader::new(body).vector8())
            .and_then(list_u16)
            .unwrap_or_default()
    }

    /// The groups of key_share, each with the length of its key.
    pub fn key_shares(&self) -> Vec<(u16, usize)> {
        let mut shares = Vec::new();
        if let Some(mut list) = self
            .extension(51)
            .and_then(|body| Reader::new(body).vector16())
        {
            while let (Some(group), Some(key)) = (list.u16(), list.vector16()) {
                shares.push((group, key.remaining()));
            }
        }
        shares
    }

    /// encrypted_client_hello of the outer form.
    pub fn ech(&self) -> Option<EchOuter> {
        let mut reader = Reader::new(self.extension(crate::ech::VERSION)?);
        (reader.u8()? == 0).then_some(())?;
        Some(EchOuter {
            kdf: reader.u16()?,
            aead: reader.u16()?,
            config_id: reader.u8()?,
            encapsulated_length: reader.vector16()?.remaining(),
            payload_length: reader.vector16()?.remaining(),
        })
    }

    fn list16(&self, id: u16) -> Vec<u16> {
        self.extension(id)
            .and_then(|body| Reader::new(body).vector16())
            .and_then(list_u16)
            .unwrap_or_default()
    }
}

fn list_u16(mut list: Reader<'_>) -> Option<Vec<u16>> {
    let mut values = Vec::with_capacity(list.remaining() / 2);
    while !list.is_empty() {
        values.push(list.u16()?);
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small hello: one suite, SNI `a.test`, ALPN `h2`.
    fn message() -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 2, 0x13, 0x01, 1, 0]);
        let extensions = [
            &[0, 0, 0, 11, 0, 9, 0, 0, 6][..],
            b"a.test",
            &[0, 16, 0, 5, 0, 3, 2],
            b"h2",
        ]
        .concat();
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(&extensions);
        let mut message = vec![1, 0, 0, body.len() as u8];
        message.extend_from_slice(&body);
        message
    }

    fn records(message: &[u8], fragment: usize) -> Vec<u8> {
        message
            .chunks(fragment)
            .flat_map(|chunk| [&[22, 3, 1, 0, chunk.len() as u8][..], chunk].concat())
            .collect()
    }

    #[test]
    fn a_hello_is_read_however_it_is_cut_into_records() {
        for fragment in [1, 3, 10, 200] {
            let records = records(&message(), fragment);
            let hello = ClientHello::from_records(&records).unwrap().unwrap();
            assert_eq!(hello.server_name(), Some("a.test"));
            assert_eq!(hello.alpn(), ["h2"]);
            assert_eq!(hello.extension_ids(), [0, 16]);
            assert_eq!(hello.wire_length, records.len());
            for length in 0..records.len() {
                assert_eq!(ClientHello::from_records(&records[..length]), Ok(None));
            }
        }
    }

    #[test]
    fn another_protocol_is_told_from_a_hello() {
        assert_eq!(
            ClientHello::from_records(b"GET / HTTP/1.1\r\n"),
            Err(NotAClientHello)
        );
        assert_eq!(
            ClientHello::from_records(&[22, 3, 1, 0, 4, 2, 0, 0, 0]),
            Err(NotAClientHello)
        );
    }

    proptest! {
        #[test]
        fn noise_never_crashes(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            position in 0usize..80,
            byte in any::<u8>(),
        ) {
            let _ = ClientHello::from_records(&noise);
            let mut changed = message();
            let position = position % changed.len();
            changed[position] = byte;
            if let Ok(Some(hello)) = ClientHello::from_records(&records(&changed, 50)) {
                let _ = (hello.server_name(), hello.alpn(), hello.key_shares(), hello.ech());
                let _ = (hello.supported_versions(), hello.point_formats(), hello.groups());
            }
        }
    }
}
