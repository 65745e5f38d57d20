"""What makes decoding fast on CUDA: recorded forwards and a fused argmax over half-precision logits."""

__all__ = ["fused_argmax", "graphs", "triton_argmax"]
