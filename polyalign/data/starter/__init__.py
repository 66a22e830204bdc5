"""The starter world: drawn scenes, generated captions, and towers pretrained on only one of the two."""
