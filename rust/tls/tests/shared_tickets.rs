//! Session tickets under keys that several servers share.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails on the spot

mod loopback;

use std::net::SocketAddr;

use ech_workers_tls::authority::Validity;
use ech_workers_tls::ech::{EchKey, config_list};
use ech_workers_tls::{
    ClientParameters, Ech, Identity, ServerContext, TicketKey, TicketKeys, TlsStream,
};
use loopback::{INNER, PUBLIC, World, dial, echo, key, parameters, ping};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn ticket_key(number: u8) -> TicketKey {
    TicketKey::new(&[number; 80]).unwrap()
}

fn shared(keys: &[u8]) -> TicketKeys {
    let shared = TicketKeys::default();
    shared.set(keys.iter().copied().map(ticket_key).collect());
    shared
}

/// A client with its authority, and the servers' ECH key.
struct Client {
    world: World,
    key: EchKey,
    list: Vec<u8>,
}

impl Client {
    fn new() -> Self {
        let key = key(5);
        Self {
            world: World::with_ech(&key),
            list: config_list(std::slice::from_ref(&key)),
            key,
        }
    }

    /// Fresh certificates for both names.
    fn identities(&self) -> [Identity; 2] {
        [PUBLIC, INNER].map(|name| {
            self.world
                .authority
                .issue(&[name], Validity::days(1))
                .unwrap()
        })
    }

    fn server(&self, tickets: &TicketKeys) -> ServerContext {
        let server =
            ServerContext::with_tickets(&self.identities(), Some(tickets.clone())).unwrap();
        server
            .set_ech_keys(std::slice::from_ref(&self.key))
            .unwrap();
        server
    }

    /// Whether a connection to this server resumed; then it has the tickets of this one.
    async fn resumes_at(&self, address: SocketAddr) -> bool {
        let parameters = ClientParameters {
            session_key: Some("the servers"),
            ..parameters(Ech::List(&self.list))
        };
        let mut tls: TlsStream = dial(address, &self.world.client, parameters).await.unwrap();
        assert!(tls.info().ech_accepted);
        ping(&mut tls).await;
        let resumed = tls.info().resumed;
        let _ = tls.shutdown().await;
        while tls.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {}
        resumed
    }
}

#[tokio::test]
async fn a_client_resumes_at_every_server_with_the_same_keys_and_at_no_other() {
    let client = Client::new();
    let one = echo(&client.server(&shared(&[1]))).await;
    let two = echo(&client.server(&shared(&[1]))).await;
    let foreign = echo(&client.server(&shared(&[2]))).await;

    assert!(!client.resumes_at(one).await, "the first connection");
    assert!(client.resumes_at(two).await, "the other server has the key");
    assert!(client.resumes_at(one).await);
    assert!(!client.resumes_at(foreign).await, "another key");
}

#[tokio::test]
async fn keys_rotate_without_losing_the_tickets_that_clients_have() {
    let client = Client::new();
    let tickets = shared(&[1]);
    let context = client.server(&tickets);
    let address = echo(&context).await;

    assert!(!client.resumes_at(address).await);
    tickets.set(vec![ticket_key(2), ticket_key(1)]);
    assert!(client.resumes_at(address).await, "the old key still opens");
    tickets.set(vec![ticket_key(2)]);
    assert!(
        client.resumes_at(address).await,
        "new tickets are under the new key"
    );
    context
        .replace(&client.identities(), std::slice::from_ref(&client.key))
        .unwrap();
    assert!(
        client.resumes_at(address).await,
        "renewed certificates leave the keys"
    );
    tickets.set(vec![ticket_key(3)]);
    assert!(
        !client.resumes_at(address).await,
        "a key that is gone opens nothing"
    );
}

#[test]
fn a_key_file_has_80_bytes() {
    assert!(TicketKey::new(&[0; 80]).is_some());
    assert!(TicketKey::new(&[0; 79]).is_none());
    assert!(TicketKey::new(&[0; 81]).is_none());
}
