"""Train the two projections and the temperature only (the paper's "frozen")."""

from __future__ import annotations

from polyalign.models.aligner import Aligner
from polyalign.models.scope import Scope as Config

__all__ = ["Config", "apply"]


def apply(aligner: Aligner, config: Config) -> None:
    """Leave both towers as they are; the projections and the temperature train with every strategy."""
