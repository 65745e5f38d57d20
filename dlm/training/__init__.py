"""Training with the masked-diffusion loss: data, masking, loss, optimizers, and the run."""

__all__ = ["attention", "config", "data", "demo_stream", "loss", "masking", "module", "optimizers", "run"]
