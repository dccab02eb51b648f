"""Ranks: config, process_group (made by the ranks that meet, in meeting), parallel (FSDP2), stop
(signals), shared (by all nodes), first_failure, within (bounded calls), heartbeat (what a rank is
doing), launch, watch (who hangs), parent (whom a rank ends with).
"""
