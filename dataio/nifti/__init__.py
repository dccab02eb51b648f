"""One NIfTI file: names, libdeflate and gzip_stream (whole and checked), forms (its affine),
header, file (voxels);
merged (several masks as one label).
"""
