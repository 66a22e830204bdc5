"""Shared code of the sources: tables, line-aligned files, published benchmarks."""
