"""The shell blocks of README and docs: what they are, which of them cannot be run here, and what a reader has done before.

`shell_world.py` runs them as they stand, in networks of their own.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "python" / "ech_workers" / "worker" / "template" / "README.md",
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """The page and the block's first line, which names it below."""
        return self.page, self.text.partition("\n")[0]

    @property
    def reason(self) -> str | None:
        """Why it is not run; None: it is."""
        return NOT_RUN.get(self.key)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str = "sh") -> list[Block]:
    """The fenced blocks in this language, in the order of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        name = str(page.relative_to(ROOT))
        for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
            if match[2] == language:
                lines = (line.removeprefix(match[1]) for line in match[3].splitlines())
                found.append(Block(name, text.count("\n", 0, match.start()) + 2, language, "\n".join(lines)))
    return found


_INDEX = "installs from the package index; `make run-here` installs a wheel and runs it"
_SYSTEMD = "needs systemd; tests/integration/test_service.py has what the units rely on, `make lint` judges the units"
_ACCOUNT = "needs npm's registry and an account; tests/worker builds and runs a project that `worker init` wrote"

# Page and first line: the reason. Their syntax, and their commands of ours, are checked all the same.
NOT_RUN = {
    ("README.md", "uvx ech-workers demo       # try it without installing: the whole tunnel on loopback, with a live table"): _INDEX,
    ("README.md", "make demo     # builds, then the whole tunnel on loopback: authority, resolver, server, target, proxy on 127.0.0.1:1080, live table"): "builds the project and runs this test",
    ("docs/how-to/containers.md", "podman build -f deploy/container/Containerfile -t ech-workers ."): "needs base images of a registry; `make run-image` does without",
    ("docs/how-to/containers.md", "docker compose -f deploy/container/compose.yaml up"): "needs Docker and its daemon",
    ("docs/how-to/curl-git-browser.md", "chromium --proxy-server=socks5://127.0.0.1:1080"): "opens a window; tests/browser runs it without one",
    ("docs/how-to/service.md", "sudo python3 -m venv /opt/ech-workers"): _INDEX,
    ("docs/how-to/service.md", "sudo useradd --system --home-dir /etc/ech-workers --shell /usr/sbin/nologin ech-workers"): "makes a user of the machine",
    ("docs/how-to/service.md", "sudo systemctl daemon-reload"): _SYSTEMD,
    ("docs/how-to/service.md", "systemctl --user daemon-reload"): _SYSTEMD,
    ("docs/how-to/worker.md", "ech-workers worker init my-worker     # prints a token, and the two commands that follow"): _ACCOUNT,
    ("docs/tutorial.md", "python3 -m venv ~/ech && ~/ech/bin/pip install ech-workers"): _INDEX,
    ("python/ech_workers/worker/template/README.md", "npm ci                                  # 1. install"): _ACCOUNT,
}  # fmt: skip

# Pages that start the server themselves, at 203.0.113.7. For the others it is there.
WITH_SERVER = {"README.md", "docs/tutorial.md", "docs/how-to/own-server.md"}

# Where the text says of a word that it stands for another one.
STANDS_FOR = {
    ("docs/tutorial.md", "@keys/148.ech"): '"@$(ls keys/*.ech)"',
    ("python/ech_workers/worker/template/README.md", "PROJECT_NAME"): "my-worker",
}

_TOKEN = 'printf %s "$TOKEN" >token'
_FRESH = r"""
        rm -rf ~/.cache/ech-workers; mkdir -p ~/.config/ech-workers
        (umask 077; echo "token = \"$TOKEN\"" >~/.config/ech-workers/config.toml)"""

# What a reader has done when it comes to a block: files that the text says there are, in shell. $CERTIFICATES has NAME.pem and
# NAME.key of an authority that the machine trusts, $TOKEN is the one of the server at 203.0.113.7, $ECH_CONFIG its configuration.
PREPARED = {
    ("README.md", "ech-workers keygen --public-name cover.example --name tunnel.example --out /etc/ech-workers/keys"): """
        mkdir -p /etc/ech-workers ~/.config/ech-workers
        printf '%s\\n' "$TOKEN" | tee /etc/ech-workers/tokens >~/.config/ech-workers/token
        for name in cover tunnel; do for kind in pem key; do cp "$CERTIFICATES/$name.example.$kind" $name.$kind; done; done""",
    ("docs/how-to/behind-a-cdn.md", "ech-workers proxy --server tunnel.example.net/ws --ech-domain cloudflare-ech.com --token-file token"): _TOKEN,
    ("docs/how-to/blocked-resolvers.md", "ech-workers proxy --server tunnel.example.net/ws --doh-server https://dns.example.net/dns-query --doh-ip 192.0.2.53"): _FRESH,
    ("docs/how-to/blocked-resolvers.md", "ech-workers proxy --server tunnel.example.net/ws --server-ip 203.0.113.7 --ech-config @ech.pem"): f'{_FRESH}; printf %s "$ECH_CONFIG" >ech.pem',
    ("docs/how-to/blocked-resolvers.md", "ech-workers proxy --server tunnel.example.net/ws --server-ip 203.0.113.7 --ech-bootstrap www.example.net"): _FRESH,
    ("docs/how-to/curl-git-browser.md", "curl --proxy socks5h://127.0.0.1:1080 https://example.org/"): f'{_TOKEN}; ech-workers config init --server tunnel.example.net/ws --token-file "$PWD/token"; ech-workers proxy',
    ("docs/how-to/own-server.md", "ech-workers server --listen 0.0.0.0:443 --path /ws --token-file tokens --decoy page.html --ech-keys keys \\"): """
        printf '%s\\n' "$TOKEN" >tokens; echo '<title>Bees</title>' >page.html; cp "$CERTIFICATES"/*.example.net.* .
        ech-workers keygen --public-name www.example.net --name tunnel.example.net --out keys""",
    ("docs/how-to/several-servers.md", "ech-workers proxy --server tunnel.example.net/ws,token-file=home.token,name=home \\"): 'for name in home rented worker; do printf %s "$TOKEN" >$name.token; done',
    ("docs/how-to/when-something-fails.md", "ech-workers check --server tunnel.example/ws --token-file token      # the options that `proxy` has"): _TOKEN,
    ("docs/how-to/worker.md", "ech-workers check --server NAME.ACCOUNT.workers.dev/PATH --no-yamux --token-file token"): _TOKEN,
    ("docs/scale.md", "# on one machine, once a day; then copied to all, whole: rsync --delay-updates, or a Secret"): "mkdir tickets",
    # The changes that the list above it names.
    ("docs/tutorial.md", "ech-workers config init --force --server tunnel.example.net/ws --token-file token    # in place of the file from the link"): """
        ech-workers keygen --public-name www.example.net --name tunnel.example.net --out keys
        ech-workers server --listen 0.0.0.0:443 --path /ws --token-file token --ech-keys keys \\
            --cert "$CERTIFICATES/www.example.net.pem" --key "$CERTIFICATES/www.example.net.key" \\
            --cert "$CERTIFICATES/tunnel.example.net.pem" --key "$CERTIFICATES/tunnel.example.net.key" """,
    ("python/ech_workers/worker/template/README.md", "ech-workers proxy --server PROJECT_NAME.ACCOUNT.workers.dev/entry --no-yamux --token-file token"): _TOKEN,
}  # fmt: skip
