//! Why there is no session, in words for whoever can reach the local port: they name neither the server nor its address. The
//! log has the rest.

/// The words for a [`Code`](crate::Code), or one of Python's, as programs know it.
pub(crate) fn of(code: &str) -> &'static str {
    match code {
        "tcp-refused" => "it refuses connections",
        "tcp-timeout" | "tls-timeout" | "websocket-timeout" | "yamux-ping-timeout" => {
            "it does not answer"
        }
        "tcp-unreachable" => "there is no route to it",
        "token-rejected" => "it does not accept the token",
        "websocket-redirect" => "something before it answers with a redirect",
        "server-full" => "it has as many sessions as it may have",
        "websocket-busy" => "it takes no more connections for now",
        "cdn-challenge" | "cdn-refused" => "a CDN before it refuses the connection",
        "cdn-origin" => "a CDN before it does not reach it",
        "ech-no-config" => "there is no configuration for Encrypted Client Hello",
        "certificate-expired" => "its certificate has expired",
        "shutdown" => "the proxy is stopping",
        "local" => "this machine's limits are reached",
        _ => match code.split_once('-').map_or(code, |(layer, _)| layer) {
            "config" => "the settings cannot be used",
            "resolver" | "http" => "the look-up of its name failed",
            "tcp" => "the connection failed",
            "tls" => "the TLS handshake failed",
            "ech" => "Encrypted Client Hello cannot be used with it",
            "certificate" => "its certificate is not accepted",
            "websocket" | "token" => "it does not answer as the server of a tunnel",
            "yamux" | "closed" | "retired" => "the session ended",
            _ => "the log says why",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_words_of_its_layer() {
        assert_eq!(of("tls-version"), "the TLS handshake failed");
        assert_eq!(of("tcp-refused"), "it refuses connections");
        assert_eq!(of("closed"), "the session ended");
        assert_eq!(of("hidden.example.org"), "the log says why");
    }
}
