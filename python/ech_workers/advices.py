"""What to do about a failure, by its code: what a person reads behind the reason."""

from __future__ import annotations

__all__ = ["FOREIGN_CONFIGURATION", "OF_CODES", "OF_RESOLVERS", "OTHER_RESOLVERS"]

OTHER_RESOLVERS = "try other resolvers with --doh-server (and --doh-ip), or give --ech-config and --server-ip"

FOREIGN_CONFIGURATION = (
    "the ECH configuration may be another server's: check --ech-config, --ech-domain and --server-ip;"
    " otherwise someone may be in the middle"
)

_CUT = "something on the way cuts such connections: try another --server-ip, another --ech-domain or another --profile"

OF_CODES: dict[str, str] = {
    "session-stalled": "something on the way lets only the beginning of a connection through: try another --server-ip, or another server",
    "resolver-failed": OTHER_RESOLVERS,
    "resolver-intercepted": (
        "a captive portal (open any page in a browser and sign in to the network), or someone in the middle; if a private"
        " authority signed the resolvers' certificates, give it with --ca-file"
    ),
    "resolver-malformed": OTHER_RESOLVERS,
    "resolver-mismatch": OTHER_RESOLVERS,
    "resolver-not-dns": "check the path in --doh-server; something in front of the resolver may have answered",
    "resolver-truncated": OTHER_RESOLVERS,
    "resolver-servfail": OTHER_RESOLVERS,
    "resolver-refused": OTHER_RESOLVERS,
    "resolver-formerr": OTHER_RESOLVERS,
    "resolver-rcode": OTHER_RESOLVERS,
    "resolver-alias-chain": "the name's records lead round in a circle or too far: ask whoever keeps its zone",
    "resolver-unusable": "this client cannot use the name's HTTPS records: ask whoever keeps its zone",
    "resolver-no-name": "check the spelling of the name; the resolvers say that it does not exist",
    "resolver-no-address": "give the server's address with --server-ip",
    "tcp-refused": "check the port, and that the server runs",
    "tcp-timeout": (
        "check the address and the port, or try another address with --server-ip; a firewall may drop the packets"
    ),
    "tcp-unreachable": "check this machine's network, or try another address with --server-ip",
    "tcp-reset": "check that the server runs; if it does, " + _CUT,
    "tls-alert": "check that a TLS 1.3 server listens on this port, with a certificate for this name",
    "tls-reset": _CUT,
    "tls-version": "the server must speak TLS 1.3: ask its operator",
    "tls-not-spoken": "check the port: what listens there is no TLS server, or something on the way answers for it",
    "tls-unsupported": "ask the server's operator to allow X25519 or P-256, and a certificate that is not delegated",
    "tls-server-name": "check the name in --server",
    "tls-timeout": "the server accepts connections but does not answer: check the port; if it is right, " + _CUT,
    "ech-rejected": "the server changed its keys, and the ones it handed over were rejected too: try again in a minute",
    "ech-disabled": (
        "the server no longer offers ECH: ask its operator to turn it on;"
        " only --no-ech connects without, and shows the name to the network"
    ),
    "ech-not-accepted": (
        "the server finished the handshake without a word about ECH: check --server-ip; someone may be in the middle"
    ),
    "ech-config-invalid": "check --ech-config, or the ech= value in the HTTPS record",
    "ech-no-config": (
        "publish an HTTPS record with ech= for it (`ech-workers keygen` prints one), name a record that has one with"
        " --ech-domain (behind Cloudflare: cloudflare-ech.com), or give --ech-config"
    ),
    "certificate-unknown-issuer": (
        "if a private authority signed it, give its certificate with --ca-file; otherwise someone may be in the middle"
    ),
    "certificate-expired": "ask the server's operator to renew it, and check this machine's clock",
    "certificate-not-yet-valid": "check this machine's clock",
    "certificate-name": "check the name in --server; with --server-ip, check that the address is that server's",
    "certificate-invalid": "ask the server's operator",
    "websocket-status": "check the path in --server, and that this is the tunnel's server",
    "websocket-redirect": "what stands before the server sends clients elsewhere: check the name and the path in --server",
    "server-full": "close another client of this address, or give the server more places with --max-sessions",
    "websocket-busy": "wait; it is tried again less often. Behind Cloudflare a Worker's daily quota may be used up",
    "cdn-challenge": (
        "the CDN takes this client for a robot: its operator can turn that check off for the path of the tunnel;"
        " try another --profile or another network"
    ),
    "cdn-refused": (
        "the error code says which of the CDN's rules it was: the server's operator can change it; try another network"
    ),
    "cdn-origin": "wait, and check that the tunnel's server runs where the CDN looks for it",
    "websocket-protocol": "check that this is the tunnel's server and not something in front of it",
    "websocket-timeout": "the server accepts TLS but does not answer the upgrade: check the path in --server",
    "token-rejected": "check --token and the path in --server",
    "yamux-protocol": "the server may not speak yamux: try --no-yamux",
    "internal": "report it, with the lines of the log around it",
    "no-session": "the log says why the server cannot be reached",
    "session-timeout": "allow more time, or see the log for why the server cannot be reached",
    "too-many-connections": "close connections that are not needed, or allow more with --max-connections",
    "stream-reset": "what was received is not all of it: ask again",
    "session-lost": "what was received is not all of it: ask again; the tunnel connects by itself",
    "stream-idle": "ask again, or allow longer silences with --idle-timeout",
    "target-not-allowed": (
        "the server refuses private addresses; its operator can allow them with --allow-private-targets"
    ),
    "target-blocked": "a [[rule]] of the configuration says so",
    "target-not-found": "check the spelling of the target's name",
    "listen-in-use": "stop the program that has it, or choose another port with --listen",
    "listen-denied": "choose a port above 1023 with --listen",
    "listen-no-address": "choose an address of this machine with --listen, 127.0.0.1 for local programs alone",
}

OF_RESOLVERS: dict[str, str] = {
    "certificate-unknown-issuer": (
        "if a private authority signed the resolver's certificate, give it with --ca-file;"
        " otherwise someone may be in the middle"
    ),
    "certificate-expired": "check this machine's clock, or try other resolvers with --doh-server",
    "certificate-not-yet-valid": "check this machine's clock",
    "http-status": "check the path in --doh-server",
}
