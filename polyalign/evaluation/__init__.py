"""What a model can do: retrieval and other tasks, with confidence intervals, recorded as results."""
