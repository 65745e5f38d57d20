"""Run by torchrun: rank 0 has new weights, the others decode with them. Leaves a file for each rank that went well."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from dlm.errors import CheckpointError
from dlm.rl import Rollouts, send_weights
from tests.rl.subjects import OPTIONS, PROMPTS, WARM, bits, equal, fresh, rollouts_of, stored


def raised(action: object) -> str:
    try:
        action()  # type: ignore[operator]  # a function
    except CheckpointError as error:
        return str(error)
    raise AssertionError("it went through")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, trained = dist.get_rank(), fresh(stirred=0.3)
    incomplete = dict(list(stored(trained).items())[1:])
    if rank == 0:
        send_weights(stored(trained), version=5)
        said = raised(lambda: send_weights(incomplete, version=6))
        assert "rank 1 of the group: update_weights" in said, said
        assert "1 missing" in said, said
        said = raised(lambda: send_weights(stored(trained), version=6))
        assert "rank 2 of the group: the weights are asleep" in said, said
        assert "rank 1" not in said, said
    else:
        rollouts = rollouts_of()
        rollouts.update_weights_from_group()
        assert rollouts.weight_version == 5
        assert equal(bits(rollouts.checkpoint.backbone), bits(trained.backbone))
        expected = Rollouts(trained, options=OPTIONS, weight_version=5).generate(PROMPTS, WARM)
        assert rollouts.generate(PROMPTS, WARM) == expected
        assert "1 missing" in raised(rollouts.update_weights_from_group)
        if rank == 2:
            rollouts.sleep()
        assert "rank 2 of the group" in raised(rollouts.update_weights_from_group)
        rollouts.wake()
        assert rollouts.generate(PROMPTS, WARM) == expected
    (Path(sys.argv[1]) / f"rank{rank}").touch()
    dist.barrier()  # gloo may abort a process that leaves while others still compute
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
