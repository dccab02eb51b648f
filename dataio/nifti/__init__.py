"""One NIfTI file: names, libdeflate and gzip_stream (whole and checked), forms (its affine),
header, file (voxels);
containers (other formats), merged (several masks as one label); writing.
"""
