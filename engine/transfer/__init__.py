"""Weights that exist, taken over into an encoder of now: nnssl_plan (what stands beside theirs),
given_weights (opened), key_layouts (names of other libraries); patch_embedding (other channels and
patches), reference_networks (Primus and U-Net), start, start_report, shape (what encoder it is),
intensities; seen (who was pretrained on).
"""
