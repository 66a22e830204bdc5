"""``polyalign plan``."""
