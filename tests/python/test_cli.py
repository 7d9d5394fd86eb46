"""The command line: options, environment variables, exit codes, and errors of one line."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from dns.rdtypes.IN.HTTPS import HTTPS

from ech_workers import _native, cli, version
from ech_workers.cli import manual
from ech_workers.errors import TunnelError
from ech_workers.options import load, reference, schema
from ech_workers.options.client import CLIENT
from ech_workers.options.schema import options_of
from ech_workers.options.server import SERVER
from ech_workers.options.sources import Given

if TYPE_CHECKING:
    from collections.abc import Iterator
from harness.requirements import program

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def run(*arguments: str) -> int:
    return cli.run(list(arguments))


def test_version_names_the_commit_and_boringssl(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "commit", lambda: "0123456789ab")
    assert run("--version") == 0
    told = f"{_native.__version__} (commit 0123456789ab, {_native.BORINGSSL_REVISION})"
    assert capsys.readouterr().out == f"ech-workers {told}\n"
    assert "BoringSSL" in _native.BORINGSSL_REVISION


def test_the_commit_of_a_clone_is_that_of_git(tmp_path: Path) -> None:
    assert version.commit_of(tmp_path) is None
    program("git", "git")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@a.test"]
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    made_of = version.commit_of(tmp_path)
    assert made_of is not None
    assert len(made_of) >= 12
    assert head.startswith(made_of)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for command in ("proxy", "server", "check", "keygen", "demo", "completion"):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)


def test_the_bare_command_prints_its_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run() == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert re.search(r"^  proxy  ", said.out, re.MULTILINE)
    assert "ech-workers demo" in said.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["proxy", "--username", "J\udcfcrgen"], "the value of --username"),
        (["proxy", "--token=\udcff"], "--token"),
        (["completion", "\udcff"], "argument 2"),
    ],
)
def test_arguments_in_another_encoding_are_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said == f"ech-workers: usage: {named} is not in the encoding of this terminal (utf-8)\n"


def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ech_workers", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "ech-workers: local: cannot write the output: No space left on device\n"


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli.commands)
    for name in cli.commands.list_commands(context):
        command = cli.commands.get_command(context, name)
        assert command is not None
        yield name, command


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_option_says_what_it_is_for(
    name: str, command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, "--help") == 0
    shown = capsys.readouterr().out
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[-1] in shown


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_option_is_in_the_reference(name: str, command: click.Command) -> None:
    section = REFERENCE.read_text().partition(f"\n## ech-workers {name}\n")[2].partition("\n## ")[0]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert f"`{option}" in section, option


@pytest.mark.parametrize("name", ["proxy", "server"])
def test_every_option_of_a_schema_is_one_of_the_command_with_its_variable(name: str) -> None:
    prefix = {"proxy": "ECH_WORKERS_", "server": "ECH_WORKERS_SERVER_"}[name]
    declared = options_of({"proxy": CLIENT, "server": SERVER}[name])
    found = {parameter.name: parameter for parameter in dict(commands())[name].params}
    assert set(declared) <= set(found)
    for option in declared:
        assert found[option].envvar == prefix + option.upper()


def test_the_variables_of_the_two_sides_do_not_collide() -> None:
    variables = [
        {parameter.envvar for parameter in dict(commands())[name].params if parameter.envvar is not None}
        for name in ("proxy", "server", "demo")
    ]
    assert all(variables)
    assert len(set[object]().union(*variables)) == sum(map(len, variables))


def test_what_is_generated_is_up_to_date() -> None:
    root = REFERENCE.parents[2]
    folder = root / "ech_workers.data" / "data" / "share" / "man" / "man1"
    wanted = reference.generated(root) | {folder / name: text for name, text in manual.pages().items()}
    for path, text in wanted.items():
        assert path.read_text() == text, f"{path}: run scripts/generate_reference.py"
    assert set(folder.iterdir()) <= wanted.keys()


def test_every_command_has_a_manual_page_that_man_reads(tmp_path: Path) -> None:
    pages = manual.pages()
    assert {"ech-workers.1", "ech-workers-proxy.1", "ech-workers-config-init.1"} <= set(pages)
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    for name, text in pages.items():
        done = subprocess.run(
            ["groff", "-man", "-Tascii", "-ww"], input=text.encode(), capture_output=True, check=False
        )
        assert done.returncode == 0
        assert done.stderr == b"", name


def test_the_promised_options_are_all_there() -> None:
    proxy = {
        option
        for parameter in dict(commands())["proxy"].params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert proxy >= {
        "--listen",
        "--server",
        "--token",
        "--token-file",
        "--ech",
        "--no-ech",
        "--yamux",
        "--no-yamux",
        "--server-ip",
        "--ech-domain",
        "--doh-server",
        "--doh-ip",
        "--ech-config",
        "--ca-file",
        "--profile",
        "--sessions",
        "--log-level",
        "--log-file",
        "--plain",
        "--status-listen",
        "-v",
    }
    server = {option for parameter in dict(commands())["server"].params for option in parameter.opts}
    assert server >= {"--listen", "--cert", "--key", "--ech-keys", "--token", "--path", "--allow-private-targets"}


@pytest.mark.parametrize("group", ["config", "worker"])
def test_a_group_of_commands_alone_prints_its_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Usage: ech-workers {group} ")
    assert re.search(r"^  init +\w", said, re.MULTILINE)
    assert "ech-workers: usage" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (["proxy"], 2, r"config: --server: is missing; give --server HOST.*`ech-workers config init`"),
        (
            ["config", "init", "new.toml"],
            2,
            r"config: --server: is missing; give --server HOST.*on a terminal it is asked for",
        ),
        (["prxy"], 2, r"usage: No such command 'prxy'. Did you mean 'proxy'\?; `ech-workers --help` lists"),
        (["config", "chek"], 2, r"No such command 'chek'. Did you mean 'check'\?; `ech-workers config --help` lists"),
        (["frobnicate"], 2, r"usage: No such command 'frobnicate'\.?; `ech-workers --help` lists"),
        (["proxy", "--sever", "x"], 2, r"usage: No such option.*--sever"),
        (["proxy", "--server", "a.test/", "--idle-timeout", "soon"], 2, r"--idle-timeout.*'soon' is no time; write 90"),
        (["proxy", "--server", "a.test/", "--memory-limit", "much"], 2, r"--memory-limit.*'much' is no size"),
        (["proxy", "--server", "192.0.2.1/"], 2, r"config: --server: ECH hides a name"),
        (["proxy", "--server", "a.test/", "--doh-server", "https://b.test/q"], 2, r"--doh-ip"),
        (
            ["proxy", "--server", "a.test/", "--server-ip", "/tmp"],
            2,
            r"'/tmp' is no network; .* or a file of them as @FILE",
        ),
        (
            ["proxy", "--server", "a.test/", "--server-ip", "ips"],
            2,
            r"'ips' is no IP address; .* or a file of them as @FILE",
        ),
        (
            ["proxy", "--server", "a.test/", "--log-file", "/dev/null/log"],
            2,
            r"--log-file: cannot write /dev/null/log",
        ),
        (["server", "--listen", "0", "--cert", "/x", "--key", "/x", "--token", "a"], 2, r"--cert: cannot read /x"),
        (["keygen", "--public-name", "no name", "--out", "{tmp}"], 2, r"--public-name: "),
        (["keygen", "--public-name", "public.test", "--out", "/proc/keys"], 2, r"--out: cannot write to /proc/keys"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], code: int, pattern: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(*(argument.format(tmp=tmp_path) for argument in arguments)) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(rf"ech-workers: .*{pattern}.*\n", said.err), said.err


def test_a_port_in_use_ends_with_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run("proxy", "--plain", "--server", "a.test/", "--listen", address, "--cache-dir", "") == 12
    assert f"cannot listen on {address}: the port is in use" in capsys.readouterr().err


def test_details_come_with_v(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise TunnelError("it broke", detail="at line 7", advice="")

    monkeypatch.setattr(cli.commands, "main", fail)
    assert run("proxy") == 1
    assert capsys.readouterr().err == "ech-workers: internal: it broke\n"
    assert run("proxy", "-v") == 1
    assert capsys.readouterr().err == "ech-workers: internal: it broke\nat line 7\n"


def test_a_defect_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(cli.commands, "main", fail)
    assert run("proxy") == 1
    assert capsys.readouterr().err == "ech-workers: internal: KeyError: 'x'; this is a defect, -v shows where\n"
    assert run("proxy", "--verbose") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("1.5", 1.5), ("500ms", 0.5), ("90s", 90.0), ("10m", 600.0), ("1h", 3600.0)]
)
def test_times(text: str, seconds: float) -> None:
    assert schema.parse_seconds(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("256M", 256 << 20), ("1g", 1 << 30), ("64KiB", 64 << 10)])
def test_sizes(text: str, size: int) -> None:
    assert schema.parse_size(text) == size


def test_config_init_and_check_are_the_whole_set_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("s3cret")
    given = ["--server", "a.test/ws", "--token-file", "token", "--server-ip", "192.0.2.1", "--open-timeout", "3s"]
    assert run("config", "init", *given, "--no-yamux", "--listen", "1081") == 0
    path = tmp_path / "config" / "ech-workers" / "config.toml"
    assert f"written: {path}, for a.test:443" in capsys.readouterr().out
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.chdir("/")
    config = load.client({}).config
    assert (str(config.server), config.token, config.mode) == ("a.test:443/ws", "s3cret", "simple")
    assert (config.server_ips, config.open_timeout, config.listen[0].port) == (("192.0.2.1",), 3.0, 1081)
    assert run("config", "check") == 0
    assert capsys.readouterr().out == f"{path}: all right\n"
    assert run("config", "init", *given) == 2
    assert "is there already; edit it, or replace it with --force" in capsys.readouterr().err


def test_every_line_that_config_init_comments_out_can_be_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert run("config", "init", str(path), "--server", "a.test") == 0
    text = re.sub(r"^#(\w+ = )(?!\"\"$)", r"\1", path.read_text(), flags=re.MULTILINE)
    assert text.count("\nopen_timeout = 8\n") == 1
    path.write_text(text)
    written = load.client({}, config=str(path), variables={"ECH_WORKERS_CACHE_DIR": ""}).config
    plain = load.client({"server": Given("a.test", "--server")}, config="", variables={"ECH_WORKERS_CACHE_DIR": ""})
    assert written == plain.config
    # The rule at the end is behind a space, as prose is.
    head, mark, rule = text.partition("# [[rule]]\n")
    assert mark
    path.write_text(head + mark.removeprefix("# ") + rule.replace("# ", ""))
    private = load.client({}, config=str(path), variables={"ECH_WORKERS_CACHE_DIR": ""}).config
    assert [one.to for one in private.rules] == ["direct"]
    assert "192.168.0.0/16" in private.rules[0].networks


def test_config_show_says_where_a_value_comes_from_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text('server = "a.test"\ntoken = "s3cret"\npassword = "s3cret"\nusername = "ann"\n')
    monkeypatch.setenv("ECH_WORKERS_SESSIONS", "3")
    assert run("config", "show", "--config", str(path)) == 0
    said = capsys.readouterr().out
    assert "s3cret" not in said
    assert f'server = "a.test"  # {path}, line 1: server\n' in said
    assert f"token = (hidden)  # {path}, line 2: token\n" in said
    assert "sessions = 3  # ECH_WORKERS_SESSIONS\n" in said
    assert "idle_timeout = 600  # default\n" in said


def test_config_check_names_the_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "server.toml"
    path.write_text('listen = "0"\ncertt = "a.pem"\n')
    assert run("config", "check", "--of", "server", "--config", str(path)) == 2
    assert f"{path}, line 2: 'certt' is no option; did you mean cert?" in capsys.readouterr().err


def test_config_schema_is_the_one_of_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "schema") == 0
    assert capsys.readouterr().out == REFERENCE.with_name("config.schema.json").read_text()


def keygen(folder: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run("keygen", "--public-name", "public.test", "--out", str(folder), "--json", *arguments) == 0
    made = json.loads(capsys.readouterr().out)
    assert isinstance(made, dict)
    return made


def test_keygen_writes_what_the_server_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    made = keygen(folder, capsys=capsys)
    file = folder / f"{made['config_id']}.pem"
    assert str(file) == made["file"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    has_key, configs = _native.read_ech_pem(file.read_bytes())
    assert has_key
    assert base64.b64encode(configs).decode() == made["ech_config_list"]
    entries = _native.parse_ech_config_list(configs)
    assert [(entry.config_id, entry.public_name) for entry in entries] == [(made["config_id"], "public.test")]
    public = folder / f"{made['config_id']}.ech"
    assert str(public) == made["client_file"]
    assert _native.read_ech_pem(public.read_bytes()) == (False, configs)
    assert {path.name for path in folder.iterdir()} == {file.name, public.name}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ([], '@ 300 IN HTTPS 1 . ech="{}"'),
        (["--name", "tunnel.test"], 'tunnel.test. 300 IN HTTPS 1 . ech="{}"'),
        (
            ["--name", "tunnel.test:8443"],
            '_8443._https.tunnel.test. 300 IN HTTPS 1 tunnel.test. port=8443 ech="{}"',
        ),
    ],
)
def test_keygen_prints_a_record_that_resolvers_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: list[str], record: str
) -> None:
    import dns.zone

    made = keygen(tmp_path, *name, capsys=capsys)
    assert made["https_record"] == record.format(made["ech_config_list"])
    zone = dns.zone.from_text(
        f"$TTL 60\n@ SOA ns.test. a.test. 1 60 60 60 60\n@ NS ns.test.\n{made['https_record']}\n", "tunnel.test."
    )
    found = [rdata for _, _, rdata in zone.iterate_rdatas("HTTPS")]
    assert len(found) == 1
    assert isinstance(found[0], HTTPS)
    assert found[0].params[5].ech == base64.b64decode(str(made["ech_config_list"]))


def test_keygen_takes_an_id_that_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(256):
        if number not in (77, 200):
            (tmp_path / f"{number}.pem").write_text("taken")
    # Another maker's file may have any name.
    (tmp_path / "other.pem").write_bytes(_native.generate_ech_key(200, "public.test")[0])
    assert keygen(tmp_path, capsys=capsys)["config_id"] == 77
    assert run("keygen", "--public-name", "public.test", "--out", str(tmp_path)) == 2
    assert "256 ids" in capsys.readouterr().err


def test_keygen_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keygen", "--public-name", "public.test", "--out", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:17].strip() for line in lines] == [
        "key file",
        "client file",
        "ECH configuration",
        "DNS record",
        "to share",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    assert "_ECH_WORKERS_COMPLETE" in capsys.readouterr().out


def test_completion_completes_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ech_workers"],
        env={"_ECH_WORKERS_COMPLETE": "bash_complete", "COMP_WORDS": "ech-workers proxy --ech-", "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert {"plain,--ech-config", "plain,--ech-domain"} <= set(done.stdout.split()), done.stderr


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"'{sys.executable}' -m ech_workers --help | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "0\n"
