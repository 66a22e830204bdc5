"""The embedded starter world: scenes that are drawn, captions that are said, towers pretrained on each alone."""
