"""Signals, two processes, full disks, secrets: the command as a process of its own."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

import tiny
from cli_helpers import SMALL, SOURCE, start, sums, write_rows
from native_reasoning.records.disk import claimed, damage
from native_reasoning.records.folder import read_metrics
from native_reasoning.training.resume import checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.tiny_model().save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "qa.jsonl", sums(0, 3))


def until(process, text: str) -> None:
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal on this system")
def test_usr1_saves_and_goes_on(model, data, tmp_path):
    command = ["train", "--model", model, "--data", data, "--out", "run", *SMALL]
    process = start(*command, "--max-steps", "100000", "--save-steps", "100000", cwd=tmp_path)
    until(process, "training into")  # the model is loaded, nothing can be saved yet
    process.send_signal(signal.SIGUSR1)
    until(process, "step 2/")
    assert not checkpoints(tmp_path / "run")
    process.send_signal(signal.SIGUSR1)
    until(process, "SIGUSR1: saving at the end of this step, then going on")
    for _ in range(2):
        until(process, "step ")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    saved = checkpoints(tmp_path / "run")
    assert len(saved) == 2  # by the first signal and by the second
    assert not any(map(damage, saved))
    steps = [m["step"] for m in read_metrics(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1))


def test_a_second_run_on_the_folder_is_refused(model, data, tmp_path):
    command = ["train", "--model", model, "--data", data, "--out", "run", *SMALL]
    first = start(*command, "--max-steps", "100000", "--save-steps", "1", cwd=tmp_path)
    until(first, "step 3/")
    try:
        resumed = start("train", "--out", "run", "--resume", cwd=tmp_path)
        again = start(*command, cwd=tmp_path)
        for process in (resumed, again):
            _, err = process.communicate()
            assert process.returncode == 2, err
            assert "another process is training into run" in err
            assert "Traceback" not in err
    finally:
        first.kill()
        first.communicate()


def test_a_folder_is_claimed_by_a_process_and_given_back(tmp_path):
    code = f"""
from pathlib import Path
from native_reasoning.records.disk import claimed
with claimed(Path({str(tmp_path)!r})): pass
"""

    def other() -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": SOURCE}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)

    with pytest.raises(ZeroDivisionError), claimed(tmp_path), claimed(tmp_path / "."):  # noqa: PT012
        assert "another process is training" in other().stderr
        raise ZeroDivisionError
    assert other().returncode == 0
    with claimed(tmp_path):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
        child.start()
    assert other().returncode == 0  # although the child lives
    child.kill()
    child.join()
    with claimed(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()


@pytest.mark.parametrize("limit", ["config", "weights", "optimizer"])
def test_a_file_that_cannot_be_written(limit, model, data, tmp_path):
    """A limit on the size of files stands for a full disk."""
    weights = os.path.getsize(f"{model}/model.safetensors")
    size = {"config": 500, "weights": weights // 2, "optimizer": weights + 5000}[limit]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "native_reasoning.cli", "train", "--model", model),
            *("--data", data, "--out", "run", *SMALL, "--save-steps", "1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "Traceback" not in err
    told = err[err.index("error: ") :].splitlines()
    assert len(told) == 3
    assert "could not be written" in told[0]
    assert "begin again in a new folder" in told[2]
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / ".saving").exists()


def test_no_secret_gets_into_the_run_folder(model, data, tmp_path):
    secrets = {
        "HF_TOKEN": "hf_plantedInTheEnvironment01",
        "WANDB_API_KEY": "0123456789abcdefplantedwandb",
        "OPENAI_API_KEY": "sk-planted0123456789abcdefgh",
    }
    flag = "hf_plantedOnTheCommandLine02"
    for name, value in secrets.items():
        os.environ[name] = value
    try:
        process = start(
            "train", "--model", model, "--data", data, "--out", "run", "--hub-token", flag, *SMALL,
            cwd=tmp_path,
        )  # fmt: skip
        out, err = process.communicate()
    finally:
        for name in secrets:
            del os.environ[name]
    assert process.returncode == 0, err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 15
    for planted in (*secrets.values(), flag):
        assert planted not in out + err
        for path in files:
            assert planted.encode() not in path.read_bytes(), path


def test_a_killed_save_of_the_final_model_is_made_again(model, data, tmp_path):
    command = ["train", "--model", model, "--data", data, "--out", "run", *SMALL]
    start(*command, cwd=tmp_path).communicate()
    weights = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    left = tmp_path / "run" / ".saving" / "final"  # as a kill leaves it
    left.parent.mkdir()
    shutil.move(tmp_path / "run" / "final", left)
    (left / "of_the_dead.json").write_text("{}")
    resumed = start("train", "--out", "run", "--resume", cwd=tmp_path)
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "run" / "final" / "of_the_dead.json").exists()
    assert not (tmp_path / "run" / ".saving").exists()
