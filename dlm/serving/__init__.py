"""The HTTP server: `app` puts routes (`api`), bodies and answers (`schemas`) and middleware (`http`) in front of an
engine (`engine`); `fleet` runs several workers behind a router.
"""

__all__ = ["api", "app", "config", "engine", "fleet", "http", "logs", "metrics", "schemas", "settings"]
