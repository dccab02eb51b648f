"""Ranks: process_group, parallel (FSDP2), stop (signals), one_voice (one rank speaks), launch."""
