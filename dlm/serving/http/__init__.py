"""What every request passes, whatever its route: middleware, body limits, host check, errors, disconnects."""

__all__ = ["bodies", "disconnect", "errors", "hosts", "middleware", "slow_clients"]
