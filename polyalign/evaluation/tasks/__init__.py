"""One file an evaluator: what is measured of an aligner."""
