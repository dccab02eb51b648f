"""Decoding on the GPU: device_copy, blosc_frame and streams (frames to raw streams), inflate
(nvCOMP), stage_times, device_fit, device_reader (crops through the device's memory).
"""
