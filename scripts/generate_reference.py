"""Writes what is generated from the option schemas: tables in the reference, types for Python programs, JSON Schemas, manual pages."""

from __future__ import annotations

from pathlib import Path

from ech_workers.cli import manual
from ech_workers.options import reference

ROOT = Path(__file__).resolve().parents[1]
MANUAL = ROOT / "ech_workers.data" / "data" / "share" / "man" / "man1"

wanted = reference.generated(ROOT) | {MANUAL / name: text for name, text in manual.pages().items()}
MANUAL.mkdir(parents=True, exist_ok=True)
for stale in set(MANUAL.iterdir()) - wanted.keys():
    stale.unlink()
for path, text in wanted.items():
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        print(f"written: {path}")
