"""A run on disk, shared by any number of processes: its folder, leases on prompts, shards, merging and summary."""

__all__ = [
    "launch",
    "leases",
    "lock",
    "merging",
    "other_starts",
    "run_folder",
    "shards",
    "summary",
    "totals",
    "whole_files",
]
