"""LoRA adapters: merged at load, kept beside the weights for drafts, or trained."""

__all__ = ["adapter", "drafter", "patterns", "training"]
