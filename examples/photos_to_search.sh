#!/bin/sh
# From a folder of photos with captions to a search, in the working folder: sh PATH/TO/examples/photos_to_search.sh
# Needs polyalign (`source .venv/bin/activate`) and nothing else: the photos are drawn, and no tower is downloaded.
set -eu

# Your own photos: a folder with images and a table of file names and captions.
python "$(dirname "$0")/make_photos.py" photos

polyalign data check --lang sw --data photos                                   # are all images and captions sound?
polyalign train --lang sw --data photos --strategy side --out runs/photos      # with --recipe for better towers
polyalign eval runs/photos --lang sw                                           # how good is it, and how sure is that?
polyalign show runs/photos --out photos.html                                   # what it finds, and what it does not
polyalign index build runs/photos --images photos/images --out photos.index
polyalign search photos.index "paka mweusi kwenye nyasi" --top 5               # a black cat on the grass
# polyalign serve photos.index --open                                          # the same as a web page
