"""One run: the loss, the loop, and the state from which an interrupted run resumes."""
