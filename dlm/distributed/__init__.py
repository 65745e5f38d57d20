"""Processes: worker processes and their group, heartbeats of ranks, and ends that follow a parent's."""

__all__ = ["group", "heartbeat", "processes", "workers"]
