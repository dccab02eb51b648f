"""Ranks: config, process_group, parallel (FSDP2), stop (signals), first_failure, launch, parent
(whom a rank ends with).
"""
