"""The way to a server of a SLURM job: it is waited for, a tunnel is opened and tried, and closed again."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlm.distributed.processes import free_port
from tests.launch.cluster import SECRETS, Cluster, after, session_of
from tests.running import wait_until

SCRIPT = "connect.sh"
KEY = {"FAKE_KEY": SECRETS["DLM_API_KEY"]}


@pytest.fixture
def port() -> int:
    return free_port()


def squeue(cluster: Cluster, *answers: Sequence[object]) -> None:
    """What squeue says of the job, call by call; in the end that it runs."""
    cluster.answer("squeue", *answers, [0, f"RUNNING|n[1-2]|{cluster.work}\n"])
    cluster.answer("scontrol", [0, "n1\nn2\n"])


def server(cluster: Cluster, port: int, *, host: str = "0.0.0.0", status: str = "ready", folder: str = "") -> Path:
    """A job that runs, and the server.json of its server."""
    squeue(cluster)
    path = cluster.work / (folder or "outputs/serve/slurm-123") / "server.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    workers = [f"http://n1:{port + 1}", f"http://n2:{port + 1}"]
    facts = {"host": host, "port": port, "pid": 7, "workers": workers, "model": "LLaDA-8B", "status": status}
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return path


def tunnel(cluster: Cluster) -> list[str]:
    """The ssh that was run as the tunnel; one only."""
    [found] = [call for call in cluster.calls("ssh") if "-N" in call]
    return found


def test_it_waits_until_the_server_is_ready_and_holds_the_tunnel_open(cluster: Cluster, port: int) -> None:
    path = server(cluster, port, status="starting")
    squeue(cluster, [0, f"PENDING||{cluster.work}\n"], [0, f"CONFIGURING|n1|{cluster.work}\n"])
    with cluster.started(SCRIPT, "123", **KEY) as process:
        wait_until(lambda: len(cluster.calls("squeue")) > 4, "it asks again", process)
        assert cluster.waiting() == 0, "no tunnel yet"
        path.write_text(path.read_text().replace("starting", "ready"))
        cluster.wait_for(1, process)
        wait_until_tested(cluster, process)
        process.send_signal(signal.SIGTERM)
        done = cluster.finish(process)
    assert done.returncode == 143, done.stderr
    assert cluster.ends()[0] == ("SIGTERM", tunnel(cluster)), "the tunnel is closed"
    told = [line for line in done.stderr.splitlines() if line.startswith("job 123: ")]
    assert told == [
        f"job 123: {what}" for what in ("PENDING in the queue", "CONFIGURING in the queue", "starting", "ready")
    ]
    assert f"server: n1:{port}, model LLaDA-8B" in done.stderr


def wait_until_tested(cluster: Cluster, process: subprocess.Popen[str]) -> None:
    """Until curl has asked twice, and the script and its tunnel are all that runs."""
    wait_until(lambda: len(cluster.calls("curl")) > 1 and len(session_of(process)) == 2, "the tunnel is tried", process)


def test_a_command_runs_through_the_tunnel_which_is_closed_after_it(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    command = ["bash", "-c", "echo $DLM_BASE_URL $OPENAI_BASE_URL; exit 9"]
    done = cluster.run(SCRIPT, "--job-id", "123", "--", *command, **KEY)
    assert done.returncode == 9, done.stderr
    url = f"http://127.0.0.1:{port}/v1"
    assert done.stdout == f"{url} {url}\n"
    assert f"tested: {url} answers" in done.stderr
    assert cluster.ends()[0] == ("SIGTERM", tunnel(cluster))


def test_a_command_is_ended_with_the_script(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    with cluster.started(SCRIPT, "123", "--", "python", "client.py", FAKE_RUNS="1") as process:
        cluster.wait_for(2, process)
        process.send_signal(signal.SIGTERM)
        assert cluster.finish(process).returncode == 143
    assert ("SIGTERM", ["client.py"]) in cluster.ends()


def test_the_key_goes_to_curl_by_a_pipe(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    key = 'a "quoted\\ key'
    done = cluster.run(SCRIPT, "123", "--", "true", DLM_API_KEY=key, FAKE_KEY=key)
    assert done.returncode == 0, done.stderr
    assert not any("quoted" in word for call in cluster.log() for word in call["argv"])


@pytest.mark.parametrize(
    ("host", "login", "way"),
    [
        ("0.0.0.0", "", ["{near}:n1:{port}", "n1"]),
        ("0.0.0.0", "me@cluster", ["{near}:n1:{port}", "me@cluster"]),
        ("10.0.0.5", "", ["{near}:10.0.0.5:{port}", "n1"]),
        ("127.0.0.1", "", ["{near}:127.0.0.1:{port}", "n1"]),
        ("127.0.0.1", "me@cluster", ["{near}:127.0.0.1:{port}", "-J", "me@cluster", "me@n1"]),
        ("127.0.0.1", "cluster", ["{near}:127.0.0.1:{port}", "-J", "cluster", "n1"]),
    ],
)
def test_the_tunnel_fits_where_the_server_listens(
    host: str, login: str, way: list[str], cluster: Cluster, port: int
) -> None:
    server(cluster, port, host=host)
    done = cluster.run(SCRIPT, "123", "--print", *(["--login", login] if login else []))
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("tunnel: ")]
    assert after(shlex.split(line), "-L") == [one.format(near=f"127.0.0.1:{port}", port=port) for one in way]
    assert f"curl http://127.0.0.1:{port}/health" in done.stderr
    assert ("--login" in done.stderr) == (not login), "it says how to get there from elsewhere"
    assert not [call for call in cluster.calls("ssh") if "-N" in call], "--print opens nothing"


def test_from_elsewhere_the_login_machine_is_asked(cluster: Cluster, port: int) -> None:
    server(cluster, port, folder="my run's folder")
    folder = f"{cluster.work}/my run's folder"
    done = cluster.run(SCRIPT, "123", "--login", "me@cluster", "--run-dir", folder, "--", "true", **KEY)
    assert done.returncode == 0, done.stderr
    asked = [call for call in cluster.calls("ssh") if "-N" not in call]
    assert [shlex.split(call[-1])[0] for call in asked] == ["squeue", "cat", "scontrol"]
    assert all(call[:2] == ["-n", "me@cluster"] for call in asked)
    assert tunnel(cluster)[-1] == "me@cluster"


def test_the_port_here_may_be_another(cluster: Cluster, port: int) -> None:
    server(cluster, 8000)
    done = cluster.run(SCRIPT, "123", "--port", str(port), "--", "true", **KEY)
    assert done.returncode == 0, done.stderr
    assert f"127.0.0.1:{port}:n1:8000" in tunnel(cluster)


def test_a_server_that_lacks_a_worker_is_connected_to(cluster: Cluster, port: int) -> None:
    server(cluster, port, status="degraded")
    assert cluster.run(SCRIPT, "123", "--print").returncode == 0


def test_a_queue_that_cannot_be_asked_now_is_asked_again(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    squeue(cluster, [1, "slurm_load_jobs error: Unable to contact slurm controller\n"])
    done = cluster.run(SCRIPT, "123", "--print")
    assert done.returncode == 0, done.stderr
    assert "squeue does not know: slurm_load_jobs error: Unable to contact" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which job?"),
        (("12", "13"), "there is a job already, 12"),
        (("twelve",), "JOB_ID is a number"),
        (("12", "--port", "x"), "--port x is no number"),
        (("12", "--wait", "1m"), "no number of seconds"),
        (("12", "--login"), "--login needs a value"),
        (("12", "--"), "followed by a command"),
        (("12", "--now"), "--now is no option"),
    ],
)
def test_2_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], message: str, cluster: Cluster) -> None:
    cluster.refuses(message, SCRIPT, *arguments)


def test_2_elsewhere_a_login_machine_must_be_named(cluster: Cluster) -> None:
    cluster.remove("squeue")
    cluster.refuses("say --login USER@HOST", SCRIPT, "123")
    cluster.remove("curl")
    cluster.refuses("curl is not on the PATH", SCRIPT, "123")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1, "slurm_load_jobs error: Invalid job id specified\n"], "there is no job 123"),
        ([0, ""], "there is no job 123, or it has ended"),
        ([0, "FAILED|n1|/x\n"], "job 123 is FAILED"),
    ],
)
def test_3_the_job_is_gone(answer: list[object], message: str, cluster: Cluster) -> None:
    squeue(cluster, answer)
    cluster.refuses(message, SCRIPT, "123", code=3)


@pytest.mark.parametrize("status", ["draining", "stopped"])
def test_3_the_server_is_about_to_end(status: str, cluster: Cluster, port: int) -> None:
    server(cluster, port, status=status)
    cluster.refuses(f"is {status}; see {cluster.work}/outputs/serve/slurm-123/logs", SCRIPT, "123", code=3)


def test_4_it_does_not_wait_for_ever(cluster: Cluster, port: int) -> None:
    squeue(cluster, [0, f"PENDING||{cluster.work}\n"])
    cluster.refuses("not ready within 0 s (--wait): PENDING in the queue", SCRIPT, "123", "--wait", "0", code=4)
    server(cluster, port, status="starting")
    cluster.refuses("(--wait): starting; see its log and", SCRIPT, "123", "--wait", "1", code=4)


def test_5_no_way_to_the_machine(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    cluster.refuses("the tunnel closed at once", SCRIPT, "123", code=5, FAKE_REFUSED="1")
    cluster.refuses("ssh me@cluster does not work", SCRIPT, "123", "--login", "me@cluster", code=5, FAKE_REFUSED="1")


def test_5_a_port_that_is_taken_leads_to_another_server(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        cluster.refuses(f"port {port} of this machine already: say --port", SCRIPT, "123", code=5)
    assert not cluster.calls("ssh")


def test_5_the_server_does_not_answer_well(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    cluster.refuses("/health answers 503", SCRIPT, "123", code=5, FAKE_HEALTH="503")
    cluster.refuses("DLM_API_KEY is another", SCRIPT, "123", code=5, FAKE_KEY="x")
    cluster.refuses("DLM_API_KEY is not set", SCRIPT, "123", code=5, FAKE_KEY="x", DLM_API_KEY="")


def test_5_the_tunnel_closes_later(cluster: Cluster, port: int) -> None:
    server(cluster, port)
    with cluster.started(SCRIPT, "123", **KEY) as process:
        wait_until_tested(cluster, process)
        [ssh] = [pid for pid in session_of(process) if b"\0-N\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(ssh, signal.SIGTERM)
        done = cluster.finish(process)
    assert done.returncode == 5
    assert "the tunnel closed (ssh: 0)" in done.stderr
