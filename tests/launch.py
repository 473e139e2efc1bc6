"""Starts the ranks of a run by hand, in the environment that ``accelerate launch`` would give."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

TESTS = Path(__file__).parent
CONFIGS = TESTS.parent / "recipes" / "accelerate"


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


def work(config: str, processes: int, runs: list[dict]) -> None:
    """The ``runs`` of distributed_worker.py, one after the other on so many ranks."""
    command = [sys.executable, str(TESTS / "distributed_worker.py"), json.dumps(runs)]
    ranks = start(config, processes, command)
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    failed = [said[i] for i, rank in enumerate(ranks) if rank.returncode]
    assert not failed, "\n\n".join(text[-3000:] for text in failed)
