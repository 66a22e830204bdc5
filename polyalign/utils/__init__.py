"""Errors, files, processes and progress: tools that know nothing of images, captions or models."""
