"""Starts the ranks of a run by hand, in the environment that ``accelerate launch`` would give."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import AutoModelForCausalLM

from native_reasoning.records.folder import read_traces

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "recipes" / "accelerate"
PROMPTS = 4
#: The run that all are measured by.
PLAIN = {"lab": False, "rows": 12, "preset": "nrt-ws", "max_steps": 5, "save_steps": 3}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched(config: str, processes: int) -> dict[str, str]:
    """What the launcher adds to the environment for a file of recipes/accelerate, in float32: a
    CPU has no other arithmetic worth testing."""
    path = str(CONFIGS / f"{config}.yaml")
    assert load_config_from_file(path).num_processes == 8
    parser = launch_command_parser()
    given = ["--config_file", path, "--num_processes", str(processes), "--mixed_precision", "no"]
    args, _, _ = _validate_launch_command(parser.parse_args([*given, "script.py"]))
    if args.use_deepspeed:
        named = load_config_from_file(path).deepspeed_config
        args.deepspeed_fields_from_accelerate_config = ",".join(named)
        _, made = prepare_deepspeed_cmd_env(args)
    else:
        made = prepare_multi_gpu_env(args)
    made.pop("PYTHONPATH", None)
    return {name: value for name, value in made.items() if os.environ.get(name) != value}


def start(config: str, processes: int, command: list[str]) -> list[subprocess.Popen]:
    """The ranks of one run on this machine, on their way."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    base = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        base |= launched(config, processes)
        base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        env = base | (place if processes > 1 else {})
        ranks.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    return ranks


def work(config: str, processes: int, named: dict[str, dict]) -> None:
    """The runs of distributed_worker.py on so many ranks, each into its folder."""
    size = {"per_device_train_batch_size": PROMPTS // processes}
    runs = [{"folder": name, **size, **settings} for name, settings in named.items()]
    command = [sys.executable, str(TESTS / "distributed_worker.py"), json.dumps(runs)]
    ranks = start(config, processes, command)
    said = [rank.communicate()[1] for rank in ranks]
    failed = [said[i] for i, rank in enumerate(ranks) if rank.returncode]
    assert not failed, "\n\n".join(text[-3000:] for text in failed)


# -- What they left --------------------------------------------------------------------------------


def moved(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights before a run and after it."""
    return torch.load(folder / "weights-0.pt")


def apart(one: Path, other: Path) -> float:
    """How far the ends of two runs are from each other, by how far the first one went."""
    (start, end), (_, arrived) = moved(one), moved(other)
    assert (end - start).norm() > 0
    return float((arrived - end).norm() / (end - start).norm())


def traces_of(run: Path, step: int) -> list[tuple]:
    """Row, number and text of each trace of a step, in order."""
    rows = read_traces(run).to_pylist()
    return sorted((r["row_id"], r["k"], r["trace"]) for r in rows if r["step"] == step)


def gradients_apart(one: Path, other: Path, ranks: int) -> float:
    """How far the first gradients are from each other, by the size of the first one."""
    single = torch.load(one / "gradient-0.pt")
    several = [torch.load(other / f"gradient-{rank}.pt") for rank in range(ranks)]
    assert single.norm() > 0
    return max(float((g - single).norm() / single.norm()) for g in several)


def makes_the_same_run(one: Path, several: Path, processes: int) -> None:
    """Gradient, traces and weights of several processes are those of one."""
    assert gradients_apart(one, several, processes) <= 1e-5
    assert traces_of(several / "run", 1) == traces_of(one / "run", 1)
    assert torch.equal(moved(one)[0], moved(several)[0])
    assert apart(one, several) <= 1e-3
    final = AutoModelForCausalLM.from_pretrained(several / "final")
    saved = torch.cat([p.detach().flatten() for p in final.parameters()])
    assert torch.equal(saved, moved(several)[1])
