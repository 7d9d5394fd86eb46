//! What can be said of a certificate and its key before anybody connects.

use ech_workers_boringssl::asn1::{Asn1Time, Asn1TimeRef};
use ech_workers_boringssl::error::ErrorStack;
use ech_workers_boringssl::pkey::PKey;
use ech_workers_boringssl::x509::X509;

use crate::error::{ServerError, describe};
use crate::server::Identity;

/// A server's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its DNS names.
    pub names: Vec<String>,
    /// Valid from then on, seconds since the epoch.
    pub not_before: i64,
    /// Valid until then, seconds since the epoch.
    pub not_after: i64,
}

/// Reads the pair as a server would.
///
/// # Errors
/// [`ServerError`] if one of the two cannot be read, or they do not belong together.
pub fn inspect(identity: &Identity) -> Result<CertificateFacts, ServerError> {
    let chain = X509::stack_from_pem(&identity.chain_pem)
        .map_err(|stack| ServerError::Chain(describe(&stack)))?;
    let key = PKey::private_key_from_pem(&identity.key_pem)
        .map_err(|stack| ServerError::Key(describe(&stack)))?;
    let owns = |certificate: &X509| {
        certificate
            .public_key()
            .is_ok_and(|public| public.public_eq(&key))
    };
    let Some(own) = chain.first() else {
        return Err(ServerError::Chain(
            "no certificate in the PEM text".to_owned(),
        ));
    };
    if !owns(own) {
        return Err(match chain.iter().position(owns) {
            Some(index) => ServerError::Order(index + 1),
            None => ServerError::Mismatch,
        });
    }
    let names = own.subject_alt_names().map_or_else(Vec::new, |names| {
        names
            .iter()
            .filter_map(|name| name.dnsname().map(str::to_owned))
            .collect()
    });
    Ok(CertificateFacts {
        names,
        not_before: seconds(own.not_before())?,
        not_after: seconds(own.not_after())?,
    })
}

fn seconds(time: &Asn1TimeRef) -> Result<i64, ErrorStack> {
    let since = Asn1Time::from_unix(0)?.diff(time)?;
    Ok(i64::from(since.days) * 86_400 + i64::from(since.secs))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::authority::{CertificateAuthority, Validity};

    fn pair() -> (CertificateAuthority, Identity) {
        let authority = CertificateAuthority::new().unwrap();
        let validity = Validity {
            not_before: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            not_after: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        let identity = authority.issue(&["a.test", "*.b.test"], validity).unwrap();
        (authority, identity)
    }

    #[test]
    fn names_and_times_are_those_of_the_certificate() {
        let facts = inspect(&pair().1).unwrap();
        assert_eq!(facts.names, ["a.test", "*.b.test"]);
        assert_eq!(facts.not_before, 1_700_000_000);
        assert_eq!(facts.not_after, 1_800_000_000);
    }

    #[test]
    fn a_chain_that_begins_with_the_authority_is_out_of_order() {
        let (authority, identity) = pair();
        let mut chain_pem = authority.root_pem().unwrap();
        chain_pem.extend_from_slice(&identity.chain_pem);
        let reversed = Identity {
            chain_pem,
            ..identity
        };
        assert!(matches!(inspect(&reversed), Err(ServerError::Order(2))));
    }

    #[test]
    fn another_certificates_key_is_a_mismatch() {
        let (_, identity) = pair();
        let other = Identity {
            key_pem: pair().1.key_pem,
            ..identity
        };
        assert!(matches!(inspect(&other), Err(ServerError::Mismatch)));
    }
}
