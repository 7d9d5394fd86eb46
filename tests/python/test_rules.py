"""Rules of a configuration: what is read, what is refused, and where the mistake is."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import rules
from ech_workers.config import ClientConfig
from ech_workers.errors import ConfigError
from ech_workers.options import load
from ech_workers.options.client import CLIENT
from ech_workers.reload import difference

if TYPE_CHECKING:
    from pathlib import Path

SERVERS = 'token = "t"\n[[server]]\nname = "one"\naddress = "a.test"\n[[server]]\nname = "two"\naddress = "b.test"\n'


def loaded(folder: Path, text: str, *, servers: str = SERVERS, **options: Any) -> load.Loaded[ClientConfig]:
    path = folder / "config.toml"
    path.touch(mode=0o600)
    path.write_text(servers + text)
    given = {name: load.Given(value, f"--{name}") for name, value in options.items()}
    return load.client(given, config=str(path), variables={"HOME": str(folder)})


def refusal(folder: Path, text: str, **more: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        rules.compiled(loaded(folder, text, **more).config.rules)
    return refused.value.line().replace(f"{folder}/", "")


def test_rules_keep_their_order_and_texts_may_be_single(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("listed.test\n")
    config = loaded(
        tmp_path,
        """
[[rule]]
domain = "Bücher.example"
domain_list = "list.txt"
port = [443, "8000-8099"]
to = "block"
[[rule]]
network = ["10.0.0.0/8", "fc00::/7"]
to = "direct"
[[rule]]
to = "two"
""",
    ).config
    first, second, third = config.rules
    assert (first.to, first.domains, first.ports) == ("block", ("xn--bcher-kva.example",), ("443", "8000-8099"))
    assert [one.path for one in first.domain_lists] == [tmp_path / "list.txt"]
    assert (second.to, second.networks) == ("direct", ("10.0.0.0/8", "fc00::/7"))
    assert (third.to, third.server) == ("server", 1)
    assert len(rules.compiled(config.rules)) == 3
    assert rules.servers_of(config.rules) == {1}
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]]\nto = 'nowhere'\n", "config.toml, line 9: to: 'nowhere' is neither a way nor the name of a server"),
        ("[[rule]]\nto = 'drect'\n", "did you mean direct?"),
        ("[[rule]]\ndomain = 'a.test'\n", "config.toml, [[rule]] 1: `to` is missing"),
        ("[[rule]]\ndomian = 'a'\nto = 'block'\n", "line 9: 'domian' is no option; did you mean domain?"),
        ("[[rule]]\ndomain = 'a b'\nto = 'block'\n", "line 9: domain: \"a b\" is no domain name"),
        ("[[rule]]\ndomain = '10.0.0.1'\nto = 'block'\n", "line 9: domain: \"10.0.0.1\" is an address"),
        ("[[rule]]\ndomain_keyword = ''\nto = 'block'\n", "line 9: domain_keyword: \"\" is no part of a domain name"),
        ("[[rule]]\nto = 'block'\nnetwork = '10.0.0.0/40'\n", "line 10: network: \"10.0.0.0/40\" is no address and no network"),
        ("[[rule]]\nto = 'block'\nport = 0\n", "line 10: port: \"0\" is no port"),
        ("[[rule]]\nto = 'block'\nport = 1.5\n", "line 10: port: expected a list of texts, not 1.5"),
        ("[[rule]]\nto = 'block'\nport = '9-1'\n", "line 10: port: \"9-1\" is no port and no range of ports"),
        ("[[rule]]\nto = 'block'\ndomain_list = 'gone.txt'\n", "line 10: domain_list: cannot read gone.txt"),
        ("[[rule]]\nto = 'block'\ndomain_list = 'bad.txt'\n", "domain_list: bad.txt, line 2: \"b d\" is no domain name"),
        ("[[rule]]\nto = 'block'\nnetwork_list = 'bad.txt'\n", "network_list: bad.txt, line 1: \"a.test\" is no address"),
        ("[rule]\nto = 'block'\n", "line 8: 'rule' is no option"),
        ("[[rule]]\nto = 'block'\n" * 257, "there are 257 rules, and at most 256 are taken"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_rule_is_named_by_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("a.test\nb d\n")
    assert said in refusal(tmp_path, text)


def test_a_list_with_another_content_is_a_change_and_the_same_is_none(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("a.test\n")
    text = "[[rule]]\ndomain_list = 'list.txt'\nto = 'block'\n"
    before = loaded(tmp_path, text).config
    listed.write_text("a.test\n")
    assert not difference(CLIENT, before, loaded(tmp_path, text).config)
    listed.write_text("b.test\n")
    assert difference(CLIENT, before, loaded(tmp_path, text).config).drains == ("rule",)


def test_a_rule_for_a_server_that_is_not_in_use_goes_through_the_tunnel(tmp_path: Path) -> None:
    text = "[[rule]]\ndomain = 'a.example'\nto = 'two'\n"
    assert loaded(tmp_path, text, server="one").config.rules[0].to == "tunnel"
    assert loaded(tmp_path, text, server="two").config.rules[0].server == 0


def test_rules_of_a_python_program_are_refused_by_their_number() -> None:
    build = ClientConfig.build
    made = build(server="a.test", rule=[{"domain": "b.test", "to": "block"}, {"port": 25, "to": "direct"}])
    assert [(one.to, one.domains, one.ports) for one in made.rules] == [
        ("block", ("b.test",), ()),
        ("direct", (), ("25",)),
    ]
    wrong: list[tuple[Any, str]] = [
        ([{"domain": "b.test"}], "rule 1: `to` is missing"),
        ([{"to": "block"}, {"to": "block", "domains": "x"}], "rule 2: 'domains' is no condition; did you mean domain?"),
        ({"to": "block"}, "rule: expected a list of rules, each a mapping"),
        (["block"], "rule: expected a list of rules, each a mapping"),
        ([{"to": "block", "domain": [None]}], "domain: expected a text or several, not [None]"),
    ]
    for given, said in wrong:
        with pytest.raises(ConfigError) as refused:
            build(server="a.test", rule=given)
        assert said in refused.value.line()
