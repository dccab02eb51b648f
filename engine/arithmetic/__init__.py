"""How a step is computed on a device, apart from what it computes: config (the choices), blocks
(the parts of a model that choices are made for), precision, float8 (products of blocks), recompute
(activation checkpointing), attention (its kernels), flat (many tensors in one), masters (float32
weights beside a half copy), graph (a step that the device repeats).
"""
