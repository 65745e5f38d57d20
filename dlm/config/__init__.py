"""Configuration: the schemas behind `conf/`, the checks that cross fields, and how a choice becomes an object."""

__all__ = ["build", "checks", "schemas"]
