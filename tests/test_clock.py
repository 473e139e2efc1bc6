"""Where the time goes: stages that add up."""

import pytest

from lab_run import lab_trainer
from native_reasoning.records.folder import read_timings
from native_reasoning.records.meter import Clock
from native_reasoning.records.metrics import STAGES


def test_a_stage_inside_another_is_taken_off_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def goes_by(seconds: float) -> None:
        now[0] += seconds

    clock = Clock()
    with clock.stage("backward"):
        goes_by(2)
        with clock.stage("scoring"):
            goes_by(5)
        goes_by(4)
    goes_by(100)  # nobody's
    clock.begin("optimiser")
    clock.end("records")  # not what is running
    goes_by(1)
    clock.end("optimiser")
    seconds = clock.take()
    assert {k: v for k, v in seconds.items() if v} == {"backward": 6, "scoring": 5, "optimiser": 1}
    assert set(clock.take().values()) == {0.0}


def test_a_stage_that_fails_ends():
    clock = Clock()
    with pytest.raises(ValueError), clock.stage("sampling"):  # noqa: PT011
        raise ValueError
    with clock.stage("scoring"):
        pass
    assert set(clock.take()) == set(STAGES)


@pytest.mark.parametrize(
    "settings", [{}, {"num_iterations": 2}, {"max_tokens_per_forward": 50}], ids=str
)
def test_stages_add_up_to_the_step(settings, tmp_path):
    trainer = lab_trainer(tmp_path / "run", max_steps=5, **settings)
    trainer.train()
    lines = [t for t in read_timings(tmp_path / "run") if "step_seconds" in t]
    assert len(lines) == 5
    for line in lines:
        parts = sum(line[f"{name}_seconds"] for name in (*STAGES, "other"))
        assert parts == pytest.approx(line["step_seconds"], abs=1e-6)
        assert line["other_seconds"] > -1e-6
        for name in ("scoring", "objective", "backward", "optimiser"):
            assert line[f"{name}_seconds"] > 0, name
