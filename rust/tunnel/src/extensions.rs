//! What our own server can do beyond the deployed protocol, as it announces it in the 101 of an authenticated client.

/// The header field with the announcement.
pub(crate) const FIELD: &str = "x-stream-extensions";

/// What our server announces: the version of the extended forms, then features.
pub(crate) const ANNOUNCED: &str = "1, connect, half-close, simple-open, echo";

/// The server sends back what comes for the reserved target.
pub(crate) const ECHO: &str = "echo";

/// A server that spends more on each message than on its bytes, as Workers do, announces this: it gets what fills several
/// records as one message. A deployed server gets a message for each record.
pub(crate) const LONG_MESSAGES: &str = "long-messages";

/// A server announces this that TCP does not tell what waits for its client, as a Worker: in the extended form of simple mode both
/// sides have windows.
pub(crate) const SIMPLE_WINDOW: &str = "simple-window";

/// In a 503 for somebody with a token: there is no place for one more session of this client, those that it has go on.
pub(crate) const FULL: &str = "full";

/// The words of an announcement.
pub(crate) fn words(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}
