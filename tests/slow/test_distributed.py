"""Several gloo processes, with whole weights (DDP) and with cut ones (FSDP2), against one."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from launch import PLAIN, apart, gradients_apart, makes_the_same_run, moved, traces_of, work
from native_reasoning.records.folder import read_held_out, read_metrics, read_traces

#: Two mini-batches, each trained on twice.
FOUR_UPDATES = {"steps_per_generation": 2, "num_iterations": 2}
#: A pretended vLLM samples, from what it was sent.
VLLM = {"vllm": True, "save_steps": 3, "diagnostics_steps": 0}
#: 5 rows at 4 prompts a step: the second step has one real prompt, so one rank has none at all.
#: rlpr: sampled answers, a first policy, a mean over tokens of all ranks and a filter; nover: an
#: EMA. The lab's base closes its traces. window: the second mini-batch has 3 of 7 rows.
OTHERS = {
    "few_rows": {"lab": False, "rows": 5, "preset": "nrt-ws", "max_grad_norm": 0.5},
    "window": {"lab": False, "rows": 7, "preset": "nrt-ws", **FOUR_UPDATES},
    "adapter": {"lab": False, "rows": 12, "preset": "nrt-ws", "use_peft": True, "tied": True},
    "vllm": {"lab": False, "rows": 5, "preset": "nrt-ws", **VLLM},
    "vllm_adapter": {"lab": False, "rows": 12, "preset": "nrt-ws", **VLLM, "use_peft": True},
    "rlpr": {"lab": True, "rows": 5, "preset": "rlpr"},
    "nover": {"lab": True, "rows": 12, "preset": "nover", "steps_per_generation": 2},
}
#: One step in bfloat16, and the same under the policy that accelerate would have given to FSDP.
ROUGH = {
    "lab": False,
    "rows": 12,
    "preset": "nrt-ws",
    "max_steps": 1,
    "save_steps": 1,
    "bf16": True,
}
THEIRS = {**ROUGH, "policy": "bf16"}
#: Two runs in bfloat16 round the gradient of a weight once each, after it was summed in float32.
#: Rounding to 8 bits is off by at most 2^-8 of the number (in the mean by 1.6e-3, two by 2.3e-3).
TWO_ROUNDINGS = 2 * 2**-8
#: Metrics of traces that were exchanged: a rank does it among its own prompts, so that these have
#: other partners.
EXCHANGED = re.compile(r"specificity|trace_dep|leak|restated|clean_uplift|(gain|uplift)_[hme]")

#: Runs that are stopped with three updates of their window to come.
W1, W2 = ("ddp", 1, "window"), ("ddp", 2, "window")
#: The checkpoint that is resumed from, and those that are taken away.
KEPT = {"plain": (3, 5), "window": (1, 2, 3)}


class Runs:
    """Runs by name, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, config: str, processes: int) -> Path:
        """The folder with all runs of so many processes."""
        place = self.folder / f"{config}-{processes}"
        if not place.exists():
            place.mkdir()
            named = {"plain": PLAIN}
            if processes <= 2:
                named |= {k: {"max_steps": 3, "save_steps": 1, **v} for k, v in OTHERS.items()}
                named |= {"bf16": ROUGH} | ({"theirs": THEIRS} if config == "fsdp2" else {})
            work(config, processes, {str(place / k): v for k, v in named.items()})
        return place


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(("config", "processes"), [("ddp", 4), ("fsdp2", 2), ("fsdp2", 4)])
def test_any_number_of_processes_makes_the_same_run(config, processes, runs):
    makes_the_same_run(runs.of("ddp", 1) / "plain", runs.of(config, processes) / "plain", processes)


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", OTHERS)
def test_metrics_of_several_ranks_are_those_of_one(name, config, runs):
    one, two = runs.of("ddp", 1) / name, runs.of(config, 2) / name
    assert gradients_apart(one, two, 2) <= 1e-5
    evals = [torch.load(two / f"metrics-{rank}.pt") for rank in range(2)]
    assert evals[0] == evals[1]
    one, two = one / "run", two / "run"
    assert read_traces(two).num_rows == read_traces(one).num_rows
    assert traces_of(two, 1) == traces_of(one, 1)
    weights = "adapter_model" if "adapter" in name else "model"
    assert (two / "checkpoint-3" / f"{weights}.safetensors").exists()
    for line, other in zip(read_metrics(one)[:1], read_metrics(two)[:1], strict=True):
        a, b = ({k: v for k, v in x.items() if not EXCHANGED.match(k)} for x in (line, other))
        assert a.keys() == b.keys()
        for metric, value in a.items():
            assert b[metric] == pytest.approx(value, rel=1e-4, abs=1e-6), metric
    told = [read_held_out(run).to_pylist() for run in (one, two)]
    assert [r["row_id"] for r in told[0]] == [r["row_id"] for r in told[1]] == [0, 1, 2]
    assert [r["prompt"] for r in told[0]] == [r["prompt"] for r in told[1]]


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["vllm", "vllm_adapter"])
def test_vllm_has_the_weights_of_each_step_also_where_they_are_cut(name, config, runs):
    has_the_weights_of_each_step(runs.of(config, 2) / name / "run")


def has_the_weights_of_each_step(run: Path) -> None:
    lines = [line for line in read_metrics(run) if "loss" in line]
    assert len(lines) == 3
    assert all(line["mismatch_kl"] < 1e-9 and line["mismatch_max"] < 1e-4 for line in lines)


@pytest.mark.parametrize(
    ("then", "firsts"),
    [
        (("ddp", 1), [("ddp", 2, "plain"), ("fsdp2", 2, "plain"), ("fsdp2", 2, "adapter"), W2]),
        (("ddp", 2), [("ddp", 1, "plain"), W1]),
        (("fsdp2", 2), [("ddp", 1, "plain"), ("fsdp2", 4, "plain"), ("ddp", 1, "adapter"), W1]),
    ],
    ids=["on one process", "on two", "on two, cut"],
)
def test_a_run_goes_on_with_another_number_of_processes(then, firsts, runs, tmp_path):
    again, single = {}, {}
    for config, processes, name in firsts:
        place = tmp_path / f"{config}-{processes}-{name}"
        shutil.copytree(runs.of(config, processes) / name, place)
        (place / "weights-0.pt").unlink()
        step, *later = KEPT.get(name, (2, 3))
        for other in later:
            shutil.rmtree(place / "run" / f"checkpoint-{other}")
        settings = PLAIN if name == "plain" else {"max_steps": 3, "save_steps": 1, **OTHERS[name]}
        again[str(place)] = {**settings, "resume": str(place / "run" / f"checkpoint-{step}")}
        single[place] = runs.of("ddp", 1) / name
    work(*then, again)
    for place, one in single.items():
        assert apart(one, place) <= 1e-3


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_in_bfloat16_two_processes_differ_by_the_rounding_of_the_gradient(config, runs):
    one, two = runs.of("ddp", 1) / "bf16", runs.of(config, 2)
    assert traces_of(two / "bf16" / "run", 1) == traces_of(one / "run", 1)
    assert gradients_apart(one, two / "bf16", 2) <= TWO_ROUNDINGS
    if config == "fsdp2":  # log-probabilities of 16 bits would be another gradient
        assert gradients_apart(one, two / "theirs", 2) > 5 * TWO_ROUNDINGS


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="make deepspeed-check has DeepSpeed")
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_makes_the_same_run_and_goes_on(config, runs, tmp_path):
    one = runs.of("ddp", 1) / "plain"
    work(config, 2, {str(tmp_path / "run"): PLAIN})
    assert apart(one, tmp_path / "run") <= 1e-3
    assert traces_of(tmp_path / "run" / "run", 1) == traces_of(one / "run", 1)
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    saved = torch.cat([p.detach().flatten() for p in final.parameters()])
    assert (saved - moved(one)[1]).norm() <= 1e-3 * (moved(one)[1] - moved(one)[0]).norm()
    shutil.rmtree(tmp_path / "run" / "run" / "checkpoint-5")
    again = {**PLAIN, "resume": str(tmp_path / "run" / "run" / "checkpoint-3")}
    work(config, 2, {str(tmp_path / "run"): again})
    assert apart(one, tmp_path / "run") <= 1e-3


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="make deepspeed-check has DeepSpeed")
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_vllm_has_the_weights_that_deepspeed_cut(config, runs, tmp_path):
    work(config, 2, {str(tmp_path / "run"): {"max_steps": 3, **OTHERS["vllm"]}})
    one, cut = runs.of("ddp", 1) / "vllm", tmp_path / "run"
    has_the_weights_of_each_step(cut / "run")
    assert traces_of(cut / "run", 1) == traces_of(one / "run", 1)
    assert apart(one, cut) <= 1e-3
