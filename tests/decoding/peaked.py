"""Random models whose logits lie far apart, so that no decision hangs on the order in which numbers were added. In a
module of its own, for worker processes to import."""

from __future__ import annotations

from dlm.errors import CheckpointError
from dlm.models.io.loading import Checkpoint, random_checkpoint
from dlm.models.sharding import Shard


def peaked(size: str, dtype: str = "float32", *, shard: Shard | None = None) -> Checkpoint:
    """A random model of a named size, or a part of it, with a head of thirty times the usual weights."""
    checkpoint = random_checkpoint(size, dtype=dtype, shard=shard)
    checkpoint.backbone.lm_head.weight.mul_(30)
    return checkpoint


def for_rank_0_alone(*, shard: Shard) -> Checkpoint:
    """A loader that fails in every other process."""
    if shard.rank:
        raise CheckpointError("the disk of this process is gone")
    return peaked("tiny", shard=shard)
