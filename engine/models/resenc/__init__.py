"""The residual-encoder U-Net of nnU-Net, for masked modelling: config, blocks, encoder, decoder,
network (both, from a mask to voxels), methods (its masked autoencoders), names (of the reference's
tensors), flops.
"""
