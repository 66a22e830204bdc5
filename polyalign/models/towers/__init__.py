"""Towers trained alone: any timm vision model, any Hugging Face text encoder."""
