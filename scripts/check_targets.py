"""Does the Rust code compile for the systems that this machine is not? `make check-targets`.

BoringSSL itself is not built (as on docs.rs, its crate then makes the bindings alone), so no compiler and no SDK of those
systems is needed: the headers are zig's.
"""

import os
import subprocess
import sys

from wheels import ROOT, add_targets, zig_headers

TARGETS = ("x86_64-pc-windows-gnu", "aarch64-apple-darwin")


def main() -> int:
    add_targets(TARGETS)
    failed = [target for target in TARGETS if not compiles(target)]
    print(f"does not compile for {', '.join(failed)}" if failed else f"compiles for {', '.join(TARGETS)}")
    return 1 if failed else 0


def compiles(target: str) -> bool:
    environment = {
        **os.environ,
        "DOCS_RS": "1",
        # A folder of its own: what is made here cannot be linked.
        "CARGO_TARGET_DIR": str(ROOT / "target" / "check"),
        f"BINDGEN_EXTRA_CLANG_ARGS_{target.replace('-', '_')}": zig_headers(target),
        # There is no interpreter of that system to ask.
        "PYO3_NO_PYTHON": "1",
        "RUSTFLAGS": "-D warnings",
    }
    command = ["cargo", "check", "--locked", "--workspace", "--lib", "--target", target]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
