"""Request handling common to all routes: middleware, body limits, host check, errors, disconnects."""

__all__ = ["bodies", "disconnect", "errors", "hosts", "middleware", "slow_clients"]
