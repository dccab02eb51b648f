"""NIfTI corpora -> verified sharded Zarr -> batches of crops on the device.

Loose files, which everything here uses: errors, extras (what is installed on request), geometry,
memory, progress, finite (no NaN in a configuration), waiting (for stores that keep silent),
registry (parts by name) and plugins (files that add to them).

Folders, each importing only what stands above it:
    native    the loops in C
    storage   bytes to and from folders and buckets
    remote    many byte ranges of a bucket at once
    nifti     one NIfTI file, read whole and checked
    chunks    one chunk, both ways
    subjects  whose a scan is: inferred from names, or declared
    labels    which files are labels, and of which images
    sources   which files belong together: layouts, options, downloads
    corpus    the format on disk
    convert   sources -> corpus
    reader    boxes of voxels from a corpus
    device    decoding on the GPU
    transforms  what augmentation does to voxels
    loader    batches of crops
    inspect   a finished corpus, looked at
"""
