"""The processes of a decoder end together: when one is killed, when one fails, when the parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from dlm.decoding.tensor_parallel.decoder import ParallelDecoder
from dlm.errors import CheckpointError, RunError
from dlm.models.io.loading import load_checkpoint
from dlm.models.sizes import SIZES
from tests.decoding.peaked import for_rank_0_alone
from tests.decoding.tensor_parallel.test_decoder import OPTIONS, alone, gone, pids, plain, requests_of, start
from tests.running import TIMEOUT, environment, python, wait_until


def test_a_killed_worker_ends_the_run_and_leaves_nothing() -> None:
    decoder = start()
    assert decoder._workers is not None
    folder = decoder._workers.folder
    assert folder.is_dir()
    run = decoder.run([plain(f"r{index}", gen_length=256, steps=256) for index in range(20)], on_step=lambda _: kill())

    def kill() -> None:
        if decoder.stats.num_steps == 3:
            os.kill(pids(decoder)[0], signal.SIGKILL)

    begun = time.monotonic()
    with pytest.raises(RunError, match=r"rank 1 .* was killed by SIGKILL"):
        list(run)
    assert time.monotonic() - begun < TIMEOUT, "the group's own timeout is half an hour"
    assert all(map(gone, pids(decoder)))
    assert not folder.exists()
    with pytest.raises(RunError, match="closed"):
        list(decoder.run([plain()]))
    decoder.close()


def test_a_decoder_whose_worker_died_idle_can_be_closed() -> None:
    decoder = start()
    (worker,) = pids(decoder)
    os.kill(worker, signal.SIGKILL)
    decoder.close()
    decoder.close()
    assert gone(worker)
    with pytest.raises(RunError, match="closed"):
        decoder.step()


def test_a_workers_error_comes_with_its_traceback() -> None:
    with pytest.raises(RunError, match=r"rank 1 .*ended with exit code 1\n(.*\n)*.*the disk of this process is gone"):
        ParallelDecoder.start(for_rank_0_alone, SIZES["tiny"], 2, OPTIONS)


def test_an_error_of_rank_0_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(popen(*args, **kw)) or started[-1])
    with pytest.raises(CheckpointError):
        ParallelDecoder.start(partial(load_checkpoint, tmp_path), SIZES["tiny"], 2, OPTIONS)
    assert len(started) == 1
    assert gone(started[0].pid)


def test_workers_end_with_a_parent_that_is_killed() -> None:
    program = (
        "from functools import partial\nimport signal\n"
        "from dlm.decoding.tensor_parallel.decoder import ParallelDecoder\n"
        "from dlm.models.io.loading import random_checkpoint\nfrom dlm.models.sizes import SIZES\n"
        "decoder = ParallelDecoder.start(partial(random_checkpoint, 'tiny'), SIZES['tiny'], 2)\n"
        "print(decoder._workers.processes[0].pid, decoder._workers.folder, flush=True)\nsignal.pause()\n"
    )
    # From standard input, as a notebook's code has no file either.
    command = [sys.executable, "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(program)
        process.stdin.close()
        pid, folder = process.stdout.readline().split()
        assert not gone(int(pid))
        process.kill()
        wait_until(lambda: gone(int(pid)), "the worker's end")
    assert Path(folder).name.startswith("dlm-group-")
    for left in Path(folder).iterdir():
        left.unlink()
    Path(folder).rmdir()


TORCHRUN = """
import sys
from functools import partial
from itertools import zip_longest
from dlm.decoding.tensor_parallel.decoder import ParallelDecoder
from dlm.models.sizes import SIZES
from tests.decoding.peaked import peaked
from tests.decoding.tensor_parallel.test_decoder import OPTIONS, by_id, requests_of

for turn in range(2):
    decoder = ParallelDecoder.start(partial(peaked, "tiny_dream"), SIZES["tiny_dream"], 2, OPTIONS)
    requests = requests_of("tiny_dream")[:5] if decoder.group.leads else []
    for again in range(2):
        found = by_id(list(decoder.run(requests)))
        with open(f"{sys.argv[1]}/{decoder.group.rank}-{turn}-{again}", "w") as file:
            file.write(repr(sorted(found.items())))
    decoder.close()
"""


def test_under_torchrun_every_rank_yields_what_rank_0_asked_for(tmp_path: Path) -> None:
    """Two decoders, one after the other, with two runs each."""
    (tmp_path / "program.py").write_text(TORCHRUN)
    command = python(
        "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "program.py"), str(tmp_path)
    )
    done = subprocess.run(
        command,
        env=environment(PYTHONPATH=str(Path.cwd())),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = repr(sorted(alone("tiny_dream", "float32", requests_of("tiny_dream")[:5]).items()))
    names = [f"{rank}-{turn}-{again}" for rank in range(2) for turn in range(2) for again in range(2)]
    assert [(tmp_path / name).read_text() == expected for name in names] == [True] * 8
