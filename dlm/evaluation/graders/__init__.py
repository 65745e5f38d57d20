"""What makes an answer right: checkers by name, and how answers are read out of texts."""

__all__ = ["checkers", "choices", "mathematics", "numbers", "programs"]
