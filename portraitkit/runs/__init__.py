"""Run folders: metrics, checkpoints, locks, interrupts, shards."""
