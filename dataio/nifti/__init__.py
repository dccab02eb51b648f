"""One NIfTI file: names, libdeflate and gzip_stream (whole and checked), header, file (voxels);
merged (several masks as one label).
"""
