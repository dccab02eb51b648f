"""Decoding on the GPU, and bringing there what the host decoded, beside the work of a step.

lanes (what runs beside what), staged (what is handed over), device_copy, stage_times; blosc_frame
and streams (frames to raw streams), inflate (nvCOMP), holdings (what stays on the device),
device_fit (whether and how much), crop_arguments, device_reader (crops through the device's
memory), uploader (crops from the host's).
"""
