"""Sources of images and captions, one file each."""
