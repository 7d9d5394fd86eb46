"""What the tunnel costs, beside direct TCP, a bare TLS pipe and stunnel: every figure interleaved in one run."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The harness is the tests' own.
sys.path.insert(0, str(ROOT / "tests"))
