"""Where the time goes: stages that add up, and the profile of a run."""

import json
import time

import pytest

from lab_run import lab_trainer
from native_reasoning.records.clock import PROFILE, Clock, ProfileCallback
from native_reasoning.records.folder import read_timings
from native_reasoning.records.metrics import STAGES


def test_a_stage_inside_another_is_taken_off_it():
    clock, began = Clock(), time.perf_counter()
    with clock.stage("backward"):
        time.sleep(0.02)
        with clock.stage("scoring"):
            time.sleep(0.05)
        time.sleep(0.02)
    clock.begin("optimiser")
    clock.end("records")  # not what is running
    time.sleep(0.01)
    clock.end("optimiser")
    whole, seconds = time.perf_counter() - began, clock.take()
    assert seconds["scoring"] >= 0.05 > seconds["backward"] - 0.03
    assert seconds["backward"] >= 0.04
    assert seconds["optimiser"] >= 0.01
    assert sum(seconds.values()) <= whole
    assert set(clock.take().values()) == {0.0}


def test_a_stage_that_fails_ends():
    clock = Clock()
    with pytest.raises(ValueError), clock.stage("sampling"):  # noqa: PT011
        raise ValueError
    with clock.stage("scoring"):
        pass
    assert set(clock.take()) == set(STAGES)


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}, {"rows_per_forward": 2}], ids=str)
def test_stages_add_up_to_the_step_and_the_profile_is_their_mean(settings, tmp_path, capsys):
    trainer = lab_trainer(tmp_path / "run", [ProfileCallback(3)], max_steps=5, **settings)
    trainer.train()
    lines = [t for t in read_timings(tmp_path / "run") if "step_seconds" in t]
    assert len(lines) == 5
    for line in lines:
        parts = sum(line[f"{name}_seconds"] for name in (*STAGES, "other"))
        assert parts == pytest.approx(line["step_seconds"], abs=1e-6)
        assert line["other_seconds"] > -1e-6
        for name in ("scoring", "objective", "backward", "optimiser"):
            assert line[f"{name}_seconds"] > 0, name
    found = json.loads((tmp_path / "run" / PROFILE).read_text())
    assert found["steps"] == 3
    middle = [line for line in lines if 2 <= line["step"] <= 4]
    for name, value in found["seconds"].items():
        assert value == pytest.approx(sum(x[f"{name}_seconds"] for x in middle) / 3)
    err = capsys.readouterr().err
    assert err.count("time of a step (3 steps, mean)") == 1
    assert "sampling" in err and "%" in err


def test_a_run_shorter_than_the_profile_tells_what_there_was(tmp_path):
    lab_trainer(tmp_path / "run", [ProfileCallback(9)], max_steps=3).train()
    assert json.loads((tmp_path / "run" / PROFILE).read_text())["steps"] == 2
