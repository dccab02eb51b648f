"""What augmentation does to voxels: augment (kinds, and what a sample draws by counter_random).

graph is what is left to do to a batch; views does it on a CPU, dali and dali_ops on a GPU.

placement says where a crop that is turned and zoomed lies in its volume, and which box of it is
read; resampling makes the crop from that box. artefacts says which of MRI's a crop may
get; crop_artefacts gives them to it, intensity_artefacts and kspace make them.
"""
