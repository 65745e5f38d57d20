"""The demo under SLURM: submitted, asked through a tunnel, and ended whatever happens."""

from __future__ import annotations

import json
import signal

import pytest

from dlm.distributed.processes import free_port
from tests.launch.cluster import LAUNCH, SECRETS, Cluster

SCRIPT = "examples/slurm_demo.sh"
ENDED = [["--state=PENDING", "4711"], ["--state=RUNNING", "--batch", "--signal=TERM", "4711"]]


@pytest.fixture(autouse=True)
def job(cluster: Cluster) -> None:
    """A job whose server is ready as soon as it is submitted."""
    cluster.answer("sbatch", [0, "4711\n"])
    cluster.answer("squeue", [0, f"RUNNING|n1|{cluster.work}\n"])
    folder = cluster.work / "outputs" / "serve" / "slurm-4711"
    folder.mkdir(parents=True)
    facts = {"host": "127.0.0.1", "port": free_port(), "workers": [], "model": "demo", "status": "ready"}
    (folder / "server.json").write_text(json.dumps(facts, indent=1))


def test_from_nothing_to_an_answer_and_back(cluster: Cluster) -> None:
    done = cluster.run(SCRIPT, "--gpus", "1", "model=demo", FAKE_KEY=SECRETS["DLM_API_KEY"])
    assert done.returncode == 0, done.stderr
    [client] = cluster.calls("python")
    assert client[0] == str(LAUNCH / "examples" / "openai_client.py")
    assert cluster.environment(*client)["OPENAI_BASE_URL"].startswith("http://127.0.0.1:")
    assert cluster.calls("scancel") == ENDED


def test_a_key_is_made_where_there_is_none(cluster: Cluster) -> None:
    done = cluster.run(SCRIPT, "model=demo", DLM_API_KEY="")
    assert done.returncode == 0, done.stderr
    key = cluster.environment("--parsable")["DLM_API_KEY"]
    assert len(key) == 48
    assert cluster.environment(*cluster.calls("python")[0])["DLM_API_KEY"] == key
    assert not any(key in word for call in cluster.log() for word in call["argv"])


def test_the_job_is_ended_when_the_question_fails(cluster: Cluster) -> None:
    assert cluster.run(SCRIPT, "model=demo", FAKE_CODE="1").returncode == 1
    assert cluster.calls("scancel") == ENDED


def test_the_job_is_ended_with_the_demo(cluster: Cluster) -> None:
    with cluster.started(SCRIPT, "model=demo", FAKE_RUNS="1") as process:
        cluster.wait_for(2, process)
        process.send_signal(signal.SIGTERM)
        assert cluster.finish(process).returncode == 143
    assert cluster.calls("scancel") == ENDED


def test_nothing_is_ended_where_nothing_was_submitted(cluster: Cluster) -> None:
    cluster.refuses("--local: this shows SLURM", SCRIPT, "--local", "model=demo")
    cluster.refuses("which model?", SCRIPT)
    assert not cluster.calls("scancel")
