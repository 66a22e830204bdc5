"""Uses of a trained model: image search."""
