"""What a frozen encoder knows while it is pretrained: config; cohort (whose volumes are asked),
samples (which crops and patches of them), features (the encoder over them, on all ranks), scores
(kNN and the linear probe), probe (the hook of a run), remarks, best (the encoder that was liked
best, written beside the last one).
"""
