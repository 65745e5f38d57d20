"""Processes of one server: workers, the router in front of them, and who starts them again."""

__all__ = ["gate", "processes", "router", "supervisor", "worker"]
