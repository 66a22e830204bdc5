"""One file a source: where images and captions come from."""
