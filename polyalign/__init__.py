"""polyalign: align two frozen towers on scarce image-text pairs, and measure what was worth it."""

__version__ = "0.1.0"
