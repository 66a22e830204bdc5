"""Grids of runs and their statistics: comparisons, significance, tables and figures."""
