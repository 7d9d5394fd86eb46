//! What rules decide, beside a plain model of them.

#![allow(clippy::unwrap_used, reason = "a test fails on the spot")]

use std::net::IpAddr;
use std::sync::Arc;

use ech_workers_rules::{Host, Mistake, Rule, Rules, Way};
use ipnet::IpNet;
use proptest::prelude::*;

fn address(text: &str) -> Host<'static> {
    Host::Address(text.parse().unwrap())
}

fn rule(way: Way, fill: impl FnOnce(&mut Rule) -> Result<(), Mistake>) -> Arc<Rule> {
    let mut rule = Rule::new(way);
    fill(&mut rule).unwrap();
    rule.into()
}

fn blocking(fill: impl FnOnce(&mut Rule) -> Result<(), Mistake>) -> Rules {
    Rules::new(vec![rule(Way::Block, fill)])
}

#[test]
fn without_rules_everything_goes_through_the_tunnel() {
    assert_eq!(
        Rules::default().decide(Host::Name("a.example"), 1),
        Way::Tunnel
    );
    assert_eq!(Rules::default().decide(address("::1"), 1), Way::Tunnel);
}

#[test]
fn a_domain_is_itself_and_all_below_it_in_any_case_and_with_a_final_dot() {
    for written in [
        "Ads.Example",
        ".ads.example",
        "*.ads.example",
        "ads.example.",
    ] {
        let rules = blocking(|rule| rule.add_domain(written));
        for name in [
            "ads.example",
            "ADS.example",
            "eu.ads.example",
            "a.b.ads.example.",
        ] {
            assert_eq!(
                rules.decide(Host::Name(name), 80),
                Way::Block,
                "{written} {name}"
            );
        }
        for name in [
            "example",
            "bads.example",
            "ads.example.org",
            "ads",
            "",
            "ads.example..",
        ] {
            assert_eq!(
                rules.decide(Host::Name(name), 80),
                Way::Tunnel,
                "{written} {name}"
            );
        }
    }
}

#[test]
fn an_exact_domain_has_nothing_below_it_and_a_keyword_is_anywhere() {
    let exact = blocking(|rule| rule.add_exact_domain("a.example"));
    assert_eq!(exact.decide(Host::Name("A.example."), 80), Way::Block);
    assert_eq!(exact.decide(Host::Name("b.a.example"), 80), Way::Tunnel);
    let keyword = blocking(|rule| rule.add_keyword("Track"));
    assert_eq!(
        keyword.decide(Host::Name("some.TRACKER.example"), 80),
        Way::Block
    );
    assert_eq!(keyword.decide(Host::Name("tra.ck"), 80), Way::Tunnel);
}

#[test]
fn a_domain_never_matches_an_address_nor_a_network_a_name() {
    let rules = blocking(|rule| {
        rule.add_domain("example")?;
        rule.add_keyword("1")
    });
    assert_eq!(rules.decide(address("1.1.1.1"), 80), Way::Tunnel);
    let rules = blocking(|rule| rule.add_network("0.0.0.0/0"));
    assert_eq!(rules.decide(Host::Name("localhost"), 80), Way::Tunnel);
    assert_eq!(rules.decide(address("192.0.2.1"), 80), Way::Block);
    assert_eq!(rules.decide(address("::ffff:192.0.2.1"), 80), Way::Block);
    assert_eq!(rules.decide(address("2001:db8::1"), 80), Way::Tunnel);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = Rules::new(vec![
        rule(Way::Server(2), |rule| {
            rule.add_domain("example")?;
            rule.add_ports("443")
        }),
        rule(Way::Direct, |rule| rule.add_exact_domain("a.example")),
        rule(Way::Block, |rule| rule.add_ports("1-79")),
        rule(Way::Tunnel, |rule| rule.add_domain("b.test")),
        Rule::new(Way::Direct).into(),
    ]);
    for (name, port, way) in [
        ("a.example", 443, Way::Server(2)),
        ("a.example", 22, Way::Direct),
        ("b.example", 79, Way::Block),
        ("b.test", 80, Way::Tunnel),
        ("c.test", 80, Way::Direct),
    ] {
        assert_eq!(rules.decide(Host::Name(name), port), way, "{name} {port}");
    }
}

#[test]
fn a_rule_with_an_empty_list_is_met_by_nothing() {
    let rules = blocking(|rule| rule.add_domain_list(b"# nothing yet\n"));
    assert_eq!(rules.decide(Host::Name("a.example"), 80), Way::Tunnel);
    let rules = blocking(|rule| rule.add_network_list(b""));
    assert_eq!(rules.decide(address("192.0.2.1"), 80), Way::Tunnel);
}

#[test]
fn lists_have_comments_and_any_line_ends_and_a_mistake_names_its_line() {
    let list = b"\xef\xbb\xbfa.example # one\r\n\r\n# two\n  .b.example\n*.c.example\nA.EXAMPLE";
    let rules = blocking(|rule| rule.add_domain_list(list));
    for name in ["a.example", "x.b.example", "c.example"] {
        assert_eq!(rules.decide(Host::Name(name), 80), Way::Block, "{name}");
    }
    let mistake = Rule::new(Way::Block).add_domain_list(b"a.example\n\nb example\n");
    assert_eq!(
        mistake.unwrap_err().to_string(),
        "line 3: \"b example\" is no domain name (letters, digits, `-` and `_`; other scripts in their xn-- form)"
    );
    let mistake = Rule::new(Way::Block).add_network_list(b"192.0.2.0/24\n192.0.2.0/33");
    assert_eq!(
        mistake.unwrap_err().to_string(),
        "line 2: \"192.0.2.0/33\" is no address and no network (192.0.2.0/24)"
    );
}

#[test]
fn what_is_no_condition_is_refused() {
    let mut rule = Rule::new(Way::Block);
    for name in [
        "",
        ".",
        "a..b",
        "a b",
        "b\u{fc}cher.example",
        "*",
        &"a".repeat(64),
        &"a.".repeat(128),
    ] {
        assert!(
            matches!(rule.add_domain(name), Err(Mistake::Domain(_))),
            "{name:?}"
        );
    }
    for name in ["192.0.2.1", "::1"] {
        assert!(
            matches!(rule.add_domain(name), Err(Mistake::Address(_))),
            "{name:?}"
        );
    }
    for keyword in ["", "a b", "\u{fc}"] {
        assert!(rule.add_keyword(keyword).is_err(), "{keyword:?}");
    }
    for ports in ["", "0", "65536", "+1", "2-1", "1-", "-", "a", "1-2-3"] {
        assert!(rule.add_ports(ports).is_err(), "{ports:?}");
    }
    for network in ["", "a.example", "192.0.2", "::/129", "192.0.2.0/"] {
        assert!(rule.add_network(network).is_err(), "{network:?}");
    }
}

fn label() -> impl Strategy<Value = String> {
    "[abAB0_-]{1,3}"
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(label(), 1..5).prop_map(|labels| labels.join("."))
}

fn network() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0..=32u8).prop_map(|(bits, prefix)| {
            IpNet::new(IpAddr::V4((bits & 0xC000_03FF).into()), prefix).unwrap()
        }),
        (any::<u128>(), 0..=128u8).prop_map(|(bits, prefix)| {
            let bits = bits & ((3 << 126) | 0x3FF);
            IpNet::new(IpAddr::V6(bits.into()), prefix).unwrap()
        }),
    ]
}

fn lower(name: &str) -> String {
    name.to_ascii_lowercase()
}

proptest! {
    #[test]
    fn domains_match_as_their_definition_says(
        domains in prop::collection::vec(name(), 0..20),
        exact in prop::collection::vec(name(), 0..5),
        asked in name(),
    ) {
        let rules = blocking(|rule| {
            rule.add_domain_list(domains.join("\n").as_bytes())?;
            exact.iter().try_for_each(|name| rule.add_exact_domain(name))
        });
        let asked_lower = lower(&asked);
        let is_below = |domain: &String| {
            let domain = lower(domain);
            asked_lower == domain || asked_lower.ends_with(&format!(".{domain}"))
        };
        let expected = domains.iter().any(is_below) || exact.iter().any(|name| lower(name) == asked_lower);
        let way = if expected { Way::Block } else { Way::Tunnel };
        prop_assert_eq!(rules.decide(Host::Name(&asked), 80), way);
    }

    #[test]
    fn networks_match_as_their_definition_says(networks in prop::collection::vec(network(), 0..12), asked in network()) {
        let list = networks.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let rules = blocking(|rule| rule.add_network_list(list.as_bytes()));
        let asked = asked.addr();
        // An IPv4 address in IPv6's clothes is one.
        let canonical = asked.to_canonical();
        let expected = networks.iter().any(|network| network.contains(&canonical));
        let way = if expected { Way::Block } else { Way::Tunnel };
        prop_assert_eq!(rules.decide(Host::Address(asked), 80), way);
    }

    #[test]
    fn no_list_and_no_name_is_too_strange(list in prop::collection::vec(any::<u8>(), 0..200), name in any::<String>(), port: u16) {
        let mut rule = Rule::new(Way::Block);
        let _ = rule.add_domain_list(&list);
        let _ = rule.add_network_list(&list);
        let _ = rule.add_ports(&String::from_utf8_lossy(&list));
        Rules::new(vec![rule.into()]).decide(Host::Name(&name), port);
    }
}
