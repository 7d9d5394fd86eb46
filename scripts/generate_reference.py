"""Writes what is generated from the option schemas: tables in the reference, types for Python programs, JSON Schemas."""

from __future__ import annotations

from pathlib import Path

from ech_workers.options import reference

for path, text in reference.generated(Path(__file__).resolve().parents[1]).items():
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        print(f"written: {path}")
