"""How a step is computed on a device, apart from what it computes: config (the choices), blocks
(the parts of a model that choices are made for), precision, recompute (activation checkpointing),
attention (its kernels).
"""
