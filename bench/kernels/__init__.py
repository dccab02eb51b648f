"""`mim3d bench kernels`: each fused operation beside eager recipes and torch.compile.

Files in reading order: stage (the command), options, cases (operations, shapes, bytes needed),
recipes (the same operations as others compute them), runs (a pytest of its own), timings (its one
test), device_time (kernels alone beside the call), roofline (the picture).
"""
