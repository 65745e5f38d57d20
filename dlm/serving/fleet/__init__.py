"""Processes of one server: workers, the router in front of them, and the supervisor that restarts them."""

__all__ = ["gate", "processes", "router", "supervisor", "worker"]
