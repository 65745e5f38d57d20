"""The loaded model behind the routes: the thread that owns the decoder, and what is submitted to it."""

__all__ = ["call", "decoder_thread", "defaults", "queued", "served_weights", "service", "state"]
