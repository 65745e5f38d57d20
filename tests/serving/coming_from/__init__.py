"""Checks of the rows of `docs/coming_from.md`, one module a document; `test_coming_from.py` runs them."""
