"""Stands in for srun, scancel and scontrol, under whose names tests/slow/test_cluster.py puts it on
the path. What SLURM would do to the processes of a job is done to real ones.

``STUB`` is a folder: srun writes the processes of its tasks there, scontrol what it was asked for.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

STUB = Path(os.environ["STUB"])


def srun(arguments: list[str]) -> int:
    """The command as a task on each of the nodes; the largest exit code, as srun's."""
    command = arguments[arguments.index("bash") :]
    tasks = []
    for node in range(int(os.environ["SLURM_NNODES"])):
        out = open(STUB / f"node-{node}.log", "a")  # noqa: SIM115
        env = {**os.environ, "SLURM_NODEID": str(node)}
        tasks.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
    (STUB / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    return max(task.wait() for task in tasks)


def scancel(arguments: list[str]) -> int:
    """A signal to every process of the step, not to the script of the job."""
    (name,) = (word.partition("=")[2] for word in arguments if word.startswith("--signal="))
    for process in _all(list(map(int, (STUB / "tasks").read_text().split()))):
        try:
            os.kill(process, signal.Signals[f"SIG{name}"])
        except ProcessLookupError:
            continue
    return 0


def _all(found: list[int]) -> list[int]:
    """Processes and all that they started, whatever session those are in."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    for process in found:  # grows meanwhile
        found.extend(children.get(process, []))
    return found


def scontrol(arguments: list[str]) -> int:
    """``show hostnames`` and ``requeue``."""
    if arguments[0] == "show":
        print("127.0.0.1")
        return 0
    with open(STUB / "requeued", "a") as file:
        file.write(" ".join(arguments) + "\n")
    return 0


if __name__ == "__main__":
    names = {"srun": srun, "scancel": scancel, "scontrol": scontrol}
    sys.exit(names[Path(sys.argv[0]).name](sys.argv[1:]))
