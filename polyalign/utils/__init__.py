"""Errors, files, processes and progress: tools that do not depend on images, captions or models."""
