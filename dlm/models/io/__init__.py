"""Checkpoints on disk and on the hub: found, read as data, loaded, converted, and told apart."""

__all__ = [
    "dcp",
    "export",
    "files",
    "hub",
    "identity",
    "loading",
    "model_source",
    "naming",
    "sources",
    "tokenizers",
    "weights",
]
