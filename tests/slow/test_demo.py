"""The demo as a newcomer runs it: its numbers, its time, its last line."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from doc_blocks import ROOT
from native_reasoning.config.errors import RunError
from native_reasoning.demo.race import PRESETS, STEPS, render, run_demo
from native_reasoning.records.folder import free_name, read_held_out


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with what the wheel holds, as it is released, and nothing else."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, str(place)], cwd=ROOT, check=True, capture_output=True)
    (packed,) = place.glob("*.whl")
    with zipfile.ZipFile(packed) as file:
        file.extractall(place / "installed")
    return place / "installed"


@pytest.fixture(scope="module")
def demo(tmp_path_factory, wheel):
    """``nrt demo --json`` from the wheel, in a process and a folder of its own, offline."""
    place = tmp_path_factory.mktemp("demo")
    out = place / "run"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(wheel)}
    asked = [sys.executable, "-c", "import native_reasoning as n; print(n.__file__)"]
    found = subprocess.run(asked, capture_output=True, text=True, env=env, cwd=place, check=True)
    assert found.stdout.startswith(str(wheel))
    command = [sys.executable, "-m", "native_reasoning.cli", "demo"]
    command += ["--seed", "0", "--json", "--out", str(out)]
    run = {"capture_output": True, "text": True, "env": env, "cwd": place}
    done = subprocess.run(command, check=False, **run)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done, out


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    top = {path.name.split("-")[0] for path in wheel.iterdir()}
    assert top == {"native_reasoning"}
    source = ROOT / "src" / "native_reasoning"
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    held = wheel / "native_reasoning"
    assert {p for p in files if p.suffix != ".pyc"} == {
        p.relative_to(held) for p in held.rglob("*") if p.is_file() and p.suffix != ".pyc"
    }


def test_demo_teaches_thinking_where_supervised_training_does_not(demo):
    result, _, _ = demo
    assert result["nrt-ws"]["accuracy"] >= 0.93
    assert result["sft"]["accuracy"] <= 0.20
    assert result["base"]["accuracy"] <= 0.25
    assert abs(result["nrt-ws"]["accuracy_no_think"] - 0.1) < 0.06  # chance: nothing leaks
    assert result["nrt-ws"]["uplift"] > 0 > result["base"]["uplift"]


def test_demo_prints_one_object_on_its_last_line(demo):
    result, done, out = demo
    assert {"base", *PRESETS, "seconds", "run", "seed"} <= result.keys()
    for name in ("base", *PRESETS):
        assert {"accuracy", "trace_length"} <= result[name].keys()
    assert result["run"] == str(out)
    for name in PRESETS:
        assert (out / name / "final" / "model.safetensors").exists()
        assert (out / name / "metrics.jsonl").exists()
    assert "Traceback" not in done.stderr


def test_demo_leaves_what_base_and_final_model_answered(demo):
    result, _, out = demo
    for name in PRESETS:
        rows = read_held_out(out / name).to_pandas()
        assert list(rows["step"].unique()) == [0, STEPS]
        before, after = (rows[rows["step"] == step] for step in (0, STEPS))
        assert list(before["prompt"]) == list(after["prompt"])
        assert before["correct"].mean() == pytest.approx(result["base"]["accuracy"], abs=0.15)
        assert after["correct"].mean() == pytest.approx(result[name]["accuracy"], abs=0.15)
    assert rows["trace"].iloc[len(before)] == result["samples"][0]["after"]["trace"]


def test_demo_table_shows_every_row_and_three_samples(demo):
    text = render(demo[0])
    for name in ("base", *PRESETS):
        assert any(line.startswith(name) for line in text.splitlines())
    assert text.count("reference ") == 3
    assert max(map(len, text.splitlines())) <= 100


def test_demo_overwrites_nothing(tmp_path):
    with pytest.raises(RunError, match="exists"):
        run_demo(out=str(tmp_path))
    assert free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert free_name(tmp_path / "demo") == tmp_path / "demo-2"
