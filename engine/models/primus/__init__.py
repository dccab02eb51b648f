"""Primus, the field's vision transformer for volumes: config; rotary (positions), blocks, encoder,
mae (its masked autoencoder), decoder (to voxel logits), names (of the reference's tensors).
"""
