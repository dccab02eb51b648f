"""Which files are labels and of which images: words, folder_images (one folder's images by all they
may be called), pairing (the whole tree), settling (what an image's labels are called), grids (whose
voxels a label shares), label_map (organs to one label), sides (classes told apart by left and
right).
"""
