"""Two towers, what aligns them, what trains (`strategies`), and the frozen features computed once."""
