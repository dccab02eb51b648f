"""Weights that exist, taken over into an encoder of now: given_weights (opened), key_layouts (names
of other libraries); patch_embedding (other channels and patches), start, start_report; seen (who
was pretrained on).
"""
