"""``python -m polyalign`` is the command line."""

from __future__ import annotations

from polyalign.cli import main

main()
