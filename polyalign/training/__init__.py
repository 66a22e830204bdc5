"""Training: what is fitted to data, and how."""
