"""recipes/cluster: a job that is stopped goes on. node.sh with a launcher of a few lines; slurm.sh
whole, with stand-ins for SLURM's commands and accelerate's and torch's real launchers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.launcher.api import LaunchConfig

from cli_helpers import LENGTHS, SOURCE, write_rows
from launch import TESTS, free_port
from native_reasoning.demo import base_path, make_rows
from native_reasoning.records.disk import damage
from native_reasoning.records.folder import read_metrics
from native_reasoning.training.resume import checkpoints

CLUSTER = TESTS.parent / "recipes" / "cluster"
NODE = (CLUSTER / "node.sh").read_text("utf-8")
#: Stands in for ``accelerate launch``: its rank sleeps until it is told to leave, if it is to.
LAUNCHER = """\
#!/usr/bin/env bash
echo "$*" >> "$NRT_RUN.asked"
[ -z "$SAVES" ] || mkdir -p "$NRT_RUN/$SAVES"
if [ -n "$WAITS" ]; then
  trap 'echo the launcher was told >> "$NRT_RUN.asked"' TERM
  bash -c 'trap "exit 143" TERM; touch "$NRT_RUN.ready"; while :; do sleep 0.05; done' &
  wait
  CODE=1
fi
exit "$CODE"
"""

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "pkill", "flock"))), reason="Linux with procps"
)


# -- node.sh ---------------------------------------------------------------------------------------


def start_node(folder: Path, code: int = 0, saves: str = "", waits: str = "") -> subprocess.Popen:
    """node.sh on the run folder ``folder``/run; its launcher saves, waits, ends with ``code``."""
    launcher = folder / "bin" / "accelerate"
    launcher.parent.mkdir(exist_ok=True)
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    env = {**os.environ, "PATH": f"{launcher.parent}:{os.environ['PATH']}"}
    env |= {"NRT_RUN": str(folder / "run"), "CODE": str(code), "SAVES": saves, "WAITS": waits}
    return subprocess.Popen(["bash", CLUSTER / "node.sh", "recipe.yaml"], env=env)


@pytest.mark.parametrize(
    ("code", "saves", "expected"),
    [(0, "", 0), (0, "checkpoint-4", 0), (2, "", 2), (1, "", 1), (1, "checkpoint-10", 143)],
)
def test_a_run_is_started_again_only_where_it_came_further(code, saves, expected, tmp_path):
    (tmp_path / "run" / "checkpoint-9").mkdir(parents=True)
    assert start_node(tmp_path, code, saves).wait() == expected
    assert "train recipe.yaml --resume --out" in (tmp_path / "run.asked").read_text()


def test_the_ranks_are_told_and_not_their_launcher(tmp_path):
    process = start_node(tmp_path, waits="yes")
    while not (tmp_path / "run.ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    told = (tmp_path / "run.asked").read_text()
    assert "was told" not in told
    assert "--resume" not in told


def test_a_run_that_never_saved_is_set_aside_and_begun_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    assert start_node(tmp_path).wait() == 0
    assert not (tmp_path / "run").exists()
    assert [path.name.startswith("run.unsaved-") for path in tmp_path.glob("run.u*")] == [True]
    assert "--resume" not in (tmp_path / "run.asked").read_text()


def test_a_folder_that_somebody_trains_into_stays(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    held = subprocess.Popen(["flock", tmp_path / "run" / ".lock", "sleep", "60"])
    try:
        while subprocess.run(["flock", "-n", tmp_path / "run" / ".lock", "true"]).returncode == 0:
            time.sleep(0.05)
        assert start_node(tmp_path).wait() == 0
        assert (tmp_path / "run" / "config.yaml").exists()
    finally:
        held.kill()
        held.wait()


def test_torch_knows_the_variable_that_gives_ranks_time(monkeypatch):
    (name,) = re.findall(r"export (\w+)=", NODE)
    monkeypatch.setenv(name, "86400")
    config = LaunchConfig(1, 1, 1)
    if not hasattr(config, "shutdown_timeout"):  # torch before it had one
        pytest.skip("this torch waits 30 s, whatever is asked")
    assert config.shutdown_timeout == 86400


# -- slurm.sh --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_wrong_setting_is_told_through_the_real_launchers(gpus, tmp_path):
    (tmp_path / "ranks.yaml").write_text("distributed_type: MULTI_GPU\nmixed_precision: 'no'\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    env |= {"NRT_RUN": str(tmp_path / "run"), "NRT_GPUS": str(gpus), "NRT_PORT": str(free_port())}
    env |= {"NRT_ACCELERATE": str(tmp_path / "ranks.yaml"), "TMPDIR": str(tmp_path)}
    command = ["bash", CLUSTER / "node.sh", "--learning-rat", "1"]
    node = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    _, err = node.communicate()
    assert node.returncode == 2, err
    assert "unknown flag --learning-rat (did you mean --learning-rate?)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.yaml"]  # nothing is left behind


def start_job(folder: Path, attempt: int, port: int) -> subprocess.Popen:
    """slurm.sh as SLURM would start it: two nodes of one process."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name in ("srun", "scancel", "scontrol"):
        if attempt == 0:
            stub = f"#!{sys.executable}\n" + (TESTS / "slurm_stub.py").read_text("utf-8")
            (commands / name).write_text(stub, "utf-8")
            (commands / name).chmod(0o755)
    (folder / "ranks.yaml").write_text("distributed_type: MULTI_GPU\nmixed_precision: 'no'\n")
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "STUB": str(folder), "SLURM_NNODES": "2", "SLURM_JOB_ID": "77"}
    env |= {"SLURM_JOB_NAME": "nrt", "SLURM_JOB_NODELIST": "a,b", "SLURM_SUBMIT_DIR": str(folder)}
    env |= {"SLURM_RESTART_COUNT": str(attempt), "NRT_GPUS": "1", "NRT_PORT": str(port)}
    env |= {"NRT_SCRIPTS": str(CLUSTER), "NRT_ACCELERATE": str(folder / "ranks.yaml")}
    env.pop("NRT_RUN", None)
    # fmt: off
    arguments = [
        "--model", base_path(), "--data", folder / "rows.jsonl", *LENGTHS, "--num-generations", "2",
        "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "1",
        "--save-steps", "1000", "--max-steps", "120",
    ]
    # fmt: on
    return subprocess.Popen(
        ["bash", CLUSTER / "slurm.sh", *map(str, arguments)], cwd=folder, env=env
    )


def wait_for(text: str, path: Path, job: subprocess.Popen) -> None:
    while not path.exists() or text not in path.read_text("utf-8"):
        assert job.poll() is None, path.read_text("utf-8")
        time.sleep(0.05)


def test_a_job_whose_time_is_up_saves_is_queued_again_and_ends(tmp_path):
    write_rows(tmp_path / "rows.jsonl", make_rows("short_answer", "train", 16, seed=1))
    log, run = tmp_path / "node-0.log", tmp_path / "runs" / "nrt-77"
    job = start_job(tmp_path, 0, free_port())
    wait_for("step 2/120", log, job)
    job.send_signal(signal.SIGUSR1)  # --signal=B:USR1@900
    assert job.wait() == 143, log.read_text("utf-8")
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    (saved,) = checkpoints(run)
    assert damage(saved) == []
    assert not (run / "final").exists()
    for number in range(2):  # no rank was killed
        told = (tmp_path / f"node-{number}.log").read_text("utf-8")
        assert "SIGKILL" not in told
        assert "stopped by SIGTERM" in told or number

    job = start_job(tmp_path, 1, free_port())
    assert job.wait() == 0, log.read_text("utf-8")
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert f"going on with {run}" in log.read_text("utf-8")
    assert damage(run / "final") == []
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, 121))


# -- Kubernetes, SkyPilot, Ray ---------------------------------------------------------------------


def test_the_other_files_say_what_node_sh_reads():
    known = set(re.findall(r"NRT_\w+", NODE))
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text("utf-8"))
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert {name for name in env if name.startswith("NRT_")} <= known
    assert env["NRT_NODES"] == str(spec["completions"]) == str(spec["parallelism"])
    assert env["NRT_HEAD"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    sky = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text("utf-8"))
    ray = (CLUSTER / "ray_job.py").read_text("utf-8")
    assert set(re.findall(r"NRT_\w+", json.dumps(sky) + ray)) <= known
    assert sky["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    for file in ("kubernetes.yaml", "skypilot.yaml", "slurm.sh"):
        for recipe in re.findall(r"recipes/[\w./-]+\.yaml", (CLUSTER / file).read_text("utf-8")):
            assert (TESTS.parent / recipe).is_file(), recipe
