"""Pretrain a tower alone, vision or text, on the starter world or on a user's own images or text."""
