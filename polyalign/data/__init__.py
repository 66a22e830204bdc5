"""Image-caption pairs from any source, and the checks made on them before training."""
