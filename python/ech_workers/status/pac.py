"""``/proxy.pac``: a proxy configuration for browsers, made from the rules.

The proxy applies the rules itself, so a browser may send it everything. What it is spared are the addresses that go
direct. Names always go to the proxy: a browser that connects to a name itself asks plain DNS for it.
"""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any

from ech_workers import files
from ech_workers.config import authority
from ech_workers.rules import LIST_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ech_workers.rules import RuleConfig

__all__ = ["CONTENT_TYPE", "script"]

CONTENT_TYPE = "application/x-ns-proxy-autoconfig"

NETWORKS_MAX = 2000
"""In one script: a browser runs it for each address."""

_SCRIPT = """\
// Made by ech-workers from its rules. Each: networks (or null for every address), ports (or null), whether it goes direct.
var RULES = @RULES@;
var PROXY = "@PROXY@";

function FindProxyForURL(url, host) {
    var address = groups(host);
    // A name is looked up by the proxy, over HTTPS.
    if (address === null) return PROXY;
    var port = portOf(url);
    for (var i = 0; i < RULES.length; i++) {
        var rule = RULES[i];
        if (inNetworks(address, rule[0]) && inPorts(port, rule[1])) return rule[2] ? "DIRECT" : PROXY;
    }
    return PROXY;
}

// An IPv4 address as two numbers of 16 bits, an IPv6 address as eight; null for a name.
function groups(host) {
    host = host.replace(/^\\[|\\]$/g, "");
    var found = /^(\\d{1,3})\\.(\\d{1,3})\\.(\\d{1,3})\\.(\\d{1,3})$/.exec(host);
    if (found) return [found[1] * 256 + +found[2], found[3] * 256 + +found[4]];
    if (host.indexOf(":") < 0) return null;
    var tail = /^(.*:)(\\d+\\.\\d+\\.\\d+\\.\\d+)$/.exec(host);
    if (tail) {
        var last = groups(tail[2]);
        host = tail[1] + last[0].toString(16) + ":" + last[1].toString(16);
    }
    var halves = host.split("::");
    var front = halves[0] ? halves[0].split(":") : [], back = halves[1] ? halves[1].split(":") : [];
    if (halves.length > 1) while (front.length + back.length < 8) front.push("0");
    var all = front.concat(back), numbers = [];
    for (var i = 0; i < all.length; i++) numbers.push(parseInt(all[i], 16));
    // An IPv4 address inside IPv6 is that IPv4 address.
    if (numbers.slice(0, 5).join() === "0,0,0,0,0" && numbers[5] === 65535) return numbers.slice(6);
    return numbers;
}

function inNetworks(address, networks) {
    if (networks === null) return true;
    for (var i = 0; i < networks.length; i++) if (inNetwork(address, networks[i][0], networks[i][1])) return true;
    return false;
}

function inNetwork(address, network, prefix) {
    if (address.length !== network.length) return false;
    for (var i = 0; i < network.length && prefix > 0; i++, prefix -= 16) {
        var shift = prefix < 16 ? 16 - prefix : 0;
        if (address[i] >> shift !== network[i] >> shift) return false;
    }
    return true;
}

function portOf(url) {
    var found = /^([a-z]+):\\/\\/(?:[^\\/?#@]*@)?(?:\\[[^\\]]*\\]|[^:\\/?#]*)(?::(\\d+))?/.exec(url) || [];
    return +(found[2] || {http: 80, ws: 80, https: 443, wss: 443, ftp: 21}[found[1]] || 0);
}

function inPorts(port, ports) {
    if (ports === null) return true;
    for (var i = 0; i < ports.length; i++) if (ports[i][0] <= port && port <= ports[i][1]) return true;
    return false;
}
"""


def script(rules: Sequence[RuleConfig], addresses: Sequence[tuple[str, int]], reached: str) -> str | None:
    """The script; None where no proxy port is open. addresses: those ports. reached: the address of this machine that
    the browser has asked. Raises ConfigError for a list that cannot be read any more."""
    if not addresses:
        return None
    same = [address for address in addresses if address[0] == reached]
    host, port = (same or list(addresses))[0]
    if ipaddress.ip_address(host).is_unspecified:
        host = reached
    # No way around the proxy when it is gone: that would be in clear.
    proxy = f"PROXY {authority(host, port)}"
    return _SCRIPT.replace("@RULES@", json.dumps(list(_of_addresses(rules)))).replace("@PROXY@", proxy)


def _of_addresses(rules: Sequence[RuleConfig]) -> Iterator[Any]:
    """The rules that an address can meet, as far as a script can hold them. Behind those everything goes to the proxy."""
    room = NETWORKS_MAX
    for rule in rules:
        has_domains = rule.domains or rule.exact_domains or rule.keywords or rule.domain_lists
        has_networks = rule.networks or rule.network_lists
        if has_domains and not has_networks:
            continue
        networks = list(rule.networks)
        for file in rule.network_lists:
            lines = files.read(file.path, "network_list", LIST_LIMIT).splitlines()
            entries = (line.partition(b"#")[0].strip().decode("ascii", "replace") for line in lines)
            networks += [entry for entry in entries if entry]
        room -= len(networks)
        if room < 0:
            return
        ports = [[int(end) for end in (text.split("-") * 2)[:2]] for text in rule.ports]
        yield [[_network(text) for text in networks] if has_networks else None, ports or None, rule.to == "direct"]


def _network(text: str) -> list[Any]:
    network = ipaddress.ip_network(text, strict=False)
    data = network.network_address.packed
    return [[int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)], network.prefixlen]
