"""How long torchrun lets its ranks live after a signal: ``python benchmarks/cluster/launcher.py``.

A rank that takes 100 s to leave; torchrun gets SIGTERM one to three times, a second apart, or
SIGUSR1 once. Told for each case: torchrun's exit code and when it left, how often the rank heard
SIGTERM, how long it lived, and whether it outlived torchrun. ``--json`` writes results.json. Linux.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
#: Seconds that torchrun is asked to wait (None: not asked), and how many signals it gets.
CASES = ((None, 1), (45, 1), (45, 2), (45, 3), (45, "USR1"))
RANK = """\
import os, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(time.time()))
began = time.time()
while time.time() - began < 100:
    beat = f"{os.getpid()} {time.time()} {len(heard)}"
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(beat)
    os.replace(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(0.1)
"""


def case(seconds: int | None, signals: int | str, folder: Path) -> dict:
    """One torchrun with one rank."""
    beat, script = folder / "beat", folder / "rank.py"
    beat.unlink(missing_ok=True)
    script.write_text(RANK, "utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop(VARIABLE, None)
    env |= {} if seconds is None else {VARIABLE: str(seconds)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", script, beat]
    with open(folder / "log", "wb") as log:
        launcher = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    while not beat.exists():
        time.sleep(0.1)
    began = time.time()
    name, count = ("TERM", signals) if isinstance(signals, int) else (signals, 1)
    for _ in range(count):
        launcher.send_signal(signal.Signals[f"SIG{name}"])
        time.sleep(1)
    code = launcher.wait()
    left = time.time()
    time.sleep(2)
    rank, last, heard = beat.read_text("utf-8").split()
    orphan = float(last) > left + 1
    if orphan:
        os.kill(int(rank), signal.SIGKILL)
    return {
        "asked_seconds": seconds,
        "signals": signals,
        "exit_code": code,
        "left_after": round(left - began, 1),
        "rank_heard": int(heard),
        "rank_lived": None if orphan else round(float(last) - began, 1),
        "orphan": orphan,
    }


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help=f"writes {RESULTS.name}")
    own = parser.parse_args()
    found = {"command": "python benchmarks/cluster/launcher.py --json", "torch": version("torch")}
    found["cases"] = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds, signals in CASES:
            found["cases"].append(case(seconds, signals, Path(folder)))
            print(json.dumps(found["cases"][-1]), flush=True)
    if own.json:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
