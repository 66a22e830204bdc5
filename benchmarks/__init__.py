"""Speed and memory, side by side with open_clip and with the obvious way of doing it; see ``README.md``."""
