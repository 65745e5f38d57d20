"""Checkpoints of `torch.distributed.checkpoint`, whose pickles are read as data."""

__all__ = ["folder", "metadata", "pickled", "saved_tensor"]
