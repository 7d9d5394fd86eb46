"""BoringSSL's own test runner against both ends of rust/tls: python -m conformance.bogo [TEST-PATTERN...]

The runner is in the source of the crate rama-boring-sys, which the build unpacks; the shim is rust/tls/examples/bogo_shim.rs.
`bogo.json` beside this file is the runner's configuration: it lists the tests that are left out, each with its reason. Tests that
need an option which the shim does not know are not run either, and counted as unimplemented: they are about what our ends do not
have (client certificates, 0-RTT, renegotiation, raw public keys, external keys, policies) or show to nobody.
The exit code is 1 if a test fails.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from harness.built import ROOT
from harness.cargo import example

CONFIGURATION = Path(__file__).with_suffix(".json")
WORK = ROOT / "target" / "bogo"
RUNNER_TIMEOUT = 1800.0

# What the runner imports. BoringSSL's own go.mod is not in the crate.
GO_MOD = """module boringssl.googlesource.com/boringssl.git

go 1.26

require (
	filippo.io/mldsa v1.0.0
	golang.org/x/crypto v0.59.0
	golang.org/x/term v0.48.0
)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pattern", nargs="*", help="only tests whose names match these globs")
    options = parser.parse_args()
    runner = build_runner()
    shim = example("ech-workers-tls", "bogo_shim", checked=True)
    command = [
        *(str(runner), "-shim-path", str(shim), "-shim-config", str(CONFIGURATION)),
        # The shim's errors are our own words; the alerts are compared all the same.
        *("-loose-errors", "-allow-unimplemented", "-pipe"),
    ]
    if options.pattern:
        command += ["-test", ";".join(options.pattern)]
    finished = subprocess.run(
        command, cwd=runner.parent, capture_output=True, encoding="utf-8", errors="replace", timeout=RUNNER_TIMEOUT
    )
    return judge(finished.stdout + finished.stderr)


def judge(output: str) -> int:
    """Says what failed, and how many were not run for want of an option."""
    ended = Counter(re.findall(r"^(PASSED|FAILED|UNIMPLEMENTED) \(", output, re.MULTILINE))
    for failure in re.findall(r"^FAILED \(.*\)\n(?:.+\n)*", output, re.MULTILINE):
        print(failure)
    if not ended["PASSED"]:
        print(output)
    print(", ".join(f"{ended[word]} {word.lower()}" for word in ("PASSED", "FAILED", "UNIMPLEMENTED")))
    return 0 if ended["PASSED"] and not ended["FAILED"] else 1


def build_runner() -> Path:
    """The runner as a program, in a folder of its own."""
    source = boringssl()
    shutil.rmtree(WORK, ignore_errors=True)
    folder = WORK / "ssl" / "test" / "runner"
    shutil.copytree(source / "ssl" / "test" / "runner", folder)
    shutil.copytree(source / "util" / "testresult", WORK / "util" / "testresult")
    (WORK / "go.mod").write_text(GO_MOD)
    for name, key in keys().items():
        (folder / name).write_bytes(key)
    for path in folder.glob("*.go"):
        # It was written for a version of that module that had no release.
        path.write_text(path.read_text().replace("*mldsa.Parameters", "mldsa.Parameters"))
    program = folder / "runner"
    for command in (["go", "mod", "tidy"], ["go", "test", "-c", "-o", str(program), "./ssl/test/runner"]):
        built = subprocess.run(command, cwd=WORK, capture_output=True, text=True)
        if built.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{built.stderr}")
    return program


def boringssl() -> Path:
    """BoringSSL's source as the build has unpacked it."""
    found = re.search(r'BORING_BSSL_SOURCE_PATH = \{ value = "([^"]+)"', (ROOT / ".cargo" / "config.toml").read_text())
    if found is None or not (ROOT / found[1]).is_dir():
        sys.exit("BoringSSL's source is not there: `make build` unpacks it")
    return ROOT / found[1]


def keys() -> dict[str, bytes]:
    """The runner's keys, which the crate leaves out."""
    made: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey] = {
        "rsa_1024_key.pem": rsa.generate_private_key(65537, 1024),
        "rsa_2048_key.pem": rsa.generate_private_key(65537, 2048),
        "ecdsa_p256_key.pem": ec.generate_private_key(ec.SECP256R1()),
        "ecdsa_p384_key.pem": ec.generate_private_key(ec.SECP384R1()),
        "ecdsa_p521_key.pem": ec.generate_private_key(ec.SECP521R1()),
        "ed25519_key.pem": ed25519.Ed25519PrivateKey.generate(),
        "channel_id_key.pem": ec.generate_private_key(ec.SECP256R1()),
    }
    return {
        name: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for name, key in made.items()
    }


if __name__ == "__main__":
    sys.exit(main())
