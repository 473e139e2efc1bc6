"""What survives what: ``python benchmarks/faults.py --json --kills 50 --seed 0``.

Every run is ``nrt train`` on the embedded model in a process of its own, 30 optimiser steps, a
checkpoint every 3; half of the runs with an objective that samples once per update, half with one
that trains four times on a rollout, follows a lagging copy and filters prompts.

*kills*: SIGKILL at a uniformly random time between the run folder's birth and the end of the run,
and, every fifth, at the moment when a given kind of file appears while a checkpoint is saved. The
run is then resumed (or, without a checkpoint yet, begun again; a quarter of the resumptions are
killed once as well) and compared with one that was left alone: weights, metrics.jsonl byte by byte,
every trace. *disk_full*: a tmpfs (for which it must be root) without room at different moments.
*corruption*: every file of the newest checkpoint truncated, changed in one bit and removed.
*two_runs*: a second process on the same folder. *soak* (``--soak MINUTES``): memory and open files
of one long run. Linux only.

Exits with 1 where anything is not as it should be; ``failed`` says which parts.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".json")
STEPS, SAVE_STEPS = 30, 3
PAGE = 4096
#: Files of a checkpoint that are ours, written last.
OURS = ("kept.json", "checksums.json")
#: How often a kill that came too late is tried again.
TRIES = 10
#: Seconds before a command has loaded what it needs.
LOADING = 5.0
# fmt: off
COMMON = [
    "--use-cpu", "--num-generations", "4", "--max-trace-length", "16", "--max-answer-length", "20",
    "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "2",
    "--learning-rate", "5e-4", "--save-steps", str(SAVE_STEPS), "--save-total-limit", "3",
]
KINDS = {
    "on-policy": ["--preset", "nrt-ws"],
    "off-policy": [
        "--preset", "nover", "--objective.filter", "ema_std", "--objective.filter-coef", "0.5",
        "--steps-per-generation", "4", "--num-iterations", "2",
    ],
}
#: One kind of file each, in the order in which they are written.
FILES = (
    "traces/*", ".saving/*/config.json", ".saving/*/model.safetensors",
    ".saving/*/tokenizer.json", ".saving/*/optimizer.pt", ".saving/*/scheduler.pt",
    ".saving/*/rng_state.pth", ".saving/*/trainer_state.json", ".saving/*/kept.json",
    ".saving/*/checksums.json",
)
# fmt: on


@dataclass(frozen=True)
class Bench:
    """Where everything lies: the rows, and the runs that were left alone, by kind."""

    work: Path
    whole: dict[str, Path]
    seconds: dict[str, float]


def start(*arguments: Any, cwd: Path) -> subprocess.Popen:
    """``nrt`` in a process of its own, one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf")}
    return subprocess.Popen(
        [sys.executable, "-m", "native_reasoning.cli", *map(str, arguments)],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def train(work: Path, out: Path, kind: str, steps: int = STEPS) -> subprocess.Popen:
    """A new run."""
    from native_reasoning.demo import base_path

    about = ["--model", base_path(), "--data", work / "rows.jsonl", "--out", out]
    return start("train", *about, "--max-steps", steps, *COMMON, *KINDS[kind], cwd=work)


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    """Waits; returns stderr. Ends the benchmark where the exit code is another one."""
    _, told = process.communicate()
    if process.returncode != expected:
        raise SystemExit(f"exit code {process.returncode}, expected {expected}:\n{told}")
    return told


def resume(work: Path, out: Path, kind: str) -> str:
    """Goes on with a run, or begins it again where it had no checkpoint; to its end."""
    if any(out.glob("checkpoint-*")):
        return finish(start("train", "--out", out, "--resume", cwd=work))
    shutil.rmtree(out, ignore_errors=True)
    return finish(train(work, out, kind))


def wait_for(process: subprocess.Popen, ready: Callable[[], bool]) -> bool:
    """Until something is there; False where the process ended before."""
    while not ready():
        if process.poll() is not None:
            return False
        time.sleep(0.0002)
    return True


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common."""
    from native_reasoning.records.folder import read_metrics, read_traces

    out = []
    for name in ("final/model.safetensors", f"checkpoint-{STEPS}/model.safetensors"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            out.append(name)
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        out.append("metrics.jsonl")
    if [line["step"] for line in read_metrics(other)] != [*range(1, STEPS + 1)]:
        out.append("steps")
    if not read_traces(one).equals(read_traces(other)):
        out.append("traces")
    return out


def prepare(work: Path) -> Bench:
    """Rows, and one run of each kind that nobody disturbs."""
    from native_reasoning.demo import make_rows

    rows = make_rows("style_shift", "train", 64, seed=0)
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, seconds = {}, {}
    for kind in KINDS:
        out = whole[kind] = work / f"whole-{kind}"
        process = train(work, out, kind)
        wait_for(process, (out / "config.yaml").exists)
        began = time.perf_counter()
        finish(process)
        seconds[kind] = time.perf_counter() - began
    return Bench(work, whole, seconds)


# -- Kills -----------------------------------------------------------------------------------------


def kill_once(bench: Bench, number: int, seed: int) -> dict[str, Any]:
    """One kill and what became of the run."""
    draw = random.Random(f"{seed}/{number}")
    kind = list(KINDS)[number % 2]
    inside = FILES[number // 5 % len(FILES)] if number % 5 == 0 else None
    out = bench.work / f"kill-{number}"
    for _ in range(TRIES):
        shutil.rmtree(out, ignore_errors=True)
        process = train(bench.work, out, kind)
        wait_for(process, (out / "config.yaml").exists)
        if inside is None:
            after = draw.uniform(0, 2 * bench.seconds[kind])  # two at a time take longer
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(after)
        else:
            before = draw.randrange(1, STEPS // SAVE_STEPS - 1)  # checkpoints that are there
            after = float(before * SAVE_STEPS)
            wait_for(process, (out / f"checkpoint-{before * SAVE_STEPS}").exists)
            seen = set(out.glob("traces/*"))
            wait_for(process, lambda: bool(set(out.glob(inside)) - seen))  # noqa: B023
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if alive:
            break
    else:
        raise SystemExit(f"kill {number}: the run was over before, {TRIES} times: {inside}")
    found = {
        "kind": kind,
        "inside": inside,
        "after": round(after, 3),
        "saving": (out / ".saving").exists(),
        "checkpoints": len(list(out.glob("checkpoint-*"))),
        "resume_killed": False,
    }
    if number % 8 in (3, 6) and found["checkpoints"]:  # going on is killed too
        process = start("train", "--out", out, "--resume", cwd=bench.work)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 3 * bench.seconds[kind] + LOADING))
        found["resume_killed"] = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resume(bench.work, out, kind)
    found["differences"] = differences(bench.whole[kind], out)
    shutil.rmtree(out)
    print(f"  kill {number}: {found}", file=sys.stderr, flush=True)
    return found


def kills(bench: Bench, count: int, seed: int) -> dict[str, Any]:
    """All kills, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda n: kill_once(bench, n, seed), range(count)))
    return {
        "total": count,
        "identical": sum(not kill["differences"] for kill in found),
        "random_times": sum(kill["inside"] is None for kill in found),
        "inside_save": sum(kill["inside"] is not None for kill in found),
        "inside_save_while_staging": sum(
            kill["saving"] for kill in found if kill["inside"] is not None
        ),
        "resumes_killed_too": sum(kill["resume_killed"] for kill in found),
        "before_the_first_checkpoint": sum(kill["checkpoints"] == 0 for kill in found),
        "each": found,
    }


# -- Full disks ------------------------------------------------------------------------------------


def disk_full(bench: Bench, seed: int) -> dict[str, Any]:
    """A tmpfs that is filled up to a few bytes, at different steps."""
    whole = bench.whole["on-policy"]
    size = {path.name: _pages(path) for path in (whole / f"checkpoint-{STEPS}").iterdir()}
    before = 3 * PAGE + max(map(_pages, (whole / "traces").iterdir()))  # lines and traces
    model, optimizer = size["model.safetensors"], size["optimizer.pt"]
    late = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", *OURS)
    early = sum(pages for name, pages in size.items() if name not in late)
    rooms = {
        "a line of metrics": 0,
        "traces": PAGE,
        "half of the weights": before + model // 2,
        "half of the optimizer": before + early + optimizer // 2,
        "all but the last files": before + sum(size.values()) - 3 * PAGE,
    }
    draw, found = random.Random(seed), {}
    for moment, room in rooms.items():
        place = bench.work / "small"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=True)
        try:
            found[moment] = _fill(bench, place, room, draw.randrange(1, 8) * SAVE_STEPS)
        finally:
            subprocess.run(["umount", str(place)], check=True)
            place.rmdir()
        print(f"  disk full, room for {moment}: {found[moment]}", file=sys.stderr, flush=True)
    return {
        "moments": len(found),
        "clear": sum(one["clear"] for one in found.values()),
        "whole": sum(one["whole"] for one in found.values()),
        "identical": sum(not one["differences"] for one in found.values()),
        "each": found,
    }


def _pages(path: Path) -> int:
    """What a file takes on a tmpfs, in bytes."""
    return -(-path.stat().st_size // PAGE) * PAGE


def _fill(bench: Bench, place: Path, room: int, step: int) -> dict[str, Any]:
    from native_reasoning.records.disk import damage
    from native_reasoning.training.resume import checkpoints

    out = place / "run"
    process = train(bench.work, out, "on-policy")
    wait_for(process, (out / f"checkpoint-{step}").exists)
    wait_for(process, lambda: not (out / ".saving").exists())
    process.send_signal(signal.SIGSTOP)  # or it writes while the disk is filled
    free = shutil.disk_usage(place).free
    with open(place / "filler", "wb", buffering=0) as file:
        file.write(bytes(max(free - room, 0)))
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate()
    left = [damage(path) for path in checkpoints(out)]
    (place / "filler").unlink()
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    resume(bench.work, out, "on-policy")
    return {
        "after_step": step,
        "said": lines or told.splitlines()[-12:],
        "clear": process.returncode == 1 and len(lines) == 1 and "Traceback" not in told,
        "whole": bool(left) and not any(left),
        "differences": differences(bench.whole["on-policy"], out),
    }


# -- Damaged files ---------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def corruption(bench: Bench) -> dict[str, Any]:
    """Every file of the newest checkpoint, in three ways; and one run resumed after it."""
    from native_reasoning.records.disk import CHECKSUMS, damage
    from native_reasoning.training.resume import find_checkpoint

    tried = passed = 0
    missed: list[str] = []
    for kind, whole in bench.whole.items():
        out = bench.work / "damaged"
        newest, older = (f"checkpoint-{STEPS - i * SAVE_STEPS}" for i in range(2))
        if kind == "off-policy":  # an open window lies in this one
            newest, older = (f"checkpoint-{STEPS - i * SAVE_STEPS}" for i in (1, 2))
        for name in sorted(p.relative_to(whole / newest) for p in (whole / newest).rglob("*")):
            for harm in (_truncate, _flip, Path.unlink):
                shutil.copytree(whole, out)
                if kind == "off-policy":
                    shutil.rmtree(out / f"checkpoint-{STEPS}")
                harm(out / newest / name)
                wrong = damage(out / newest)
                with contextlib.redirect_stderr(io.StringIO()):
                    taken = find_checkpoint(True, out)
                tried += 1
                if taken == out / older and len(wrong) == 1 and wrong[0].startswith(str(name)):
                    passed += 1
                elif name == Path(CHECKSUMS) and taken == out / older:
                    passed += 1  # a changed digest accuses the file that it is of
                else:
                    missed.append(f"{kind} {name} {harm.__name__}: {wrong}")
                shutil.rmtree(out)
        shutil.copytree(whole, out)
        shutil.rmtree(out / "final")
        _flip(out / f"checkpoint-{STEPS}" / "optimizer.pt")
        told = resume(bench.work, out, kind)
        if "optimizer.pt was changed" not in told:
            missed.append(f"{kind}: not told of a damaged checkpoint: {told}")
        missed += [f"{kind} resumed: {what}" for what in differences(whole, out)]
        shutil.rmtree(out)
    return {"tried": tried, "detected": passed, "missed": missed}


def two_runs(bench: Bench) -> dict[str, Any]:
    """A second process, new or resuming, while the first one trains."""
    out = bench.work / "shared"
    first = train(bench.work, out, "on-policy", steps=1000)
    wait_for(first, (out / f"checkpoint-{SAVE_STEPS}").exists)
    second = train(bench.work, out, "on-policy")
    third = start("train", "--out", out, "--resume", cwd=bench.work)
    told = [process.communicate()[1] for process in (second, third)]
    refused = [process.returncode == 2 for process in (second, third)]
    first.send_signal(signal.SIGINT)
    finish(first, expected=130)
    return {
        "refused": sum(refused),
        "of": 2,
        "said": [line for text in told for line in text.splitlines() if line.startswith("error")],
    }


# -- One long run ----------------------------------------------------------------------------------


def soak(bench: Bench, minutes: float) -> dict[str, Any]:
    """Resident memory and open files, every ten seconds; the first fifth warms up."""
    out = bench.work / "soak"
    process = train(bench.work, out, "on-policy", steps=10_000_000)
    wait_for(process, (out / f"checkpoint-{SAVE_STEPS}").exists)
    reader = threading.Thread(target=process.communicate)  # or its pipe fills, and it waits
    reader.start()
    began, memory, files, lines = time.perf_counter(), [], [], [0]
    while (gone := time.perf_counter() - began) < 60 * minutes:
        time.sleep(min(10, 60 * minutes / 50))
        text = Path(f"/proc/{process.pid}/status").read_text()
        (kilobytes,) = (line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))
        memory.append(int(kilobytes) / 1e3)
        files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
        lines.append((out / "metrics.jsonl").read_bytes().count(b"\n"))
    process.send_signal(signal.SIGINT)
    reader.join()
    if process.returncode != 130:
        raise SystemExit(f"soak: exit code {process.returncode}")
    part = len(memory) // 10
    first, last = memory[2 * part : 3 * part], memory[-part:]
    shutil.rmtree(out)
    return {
        "minutes": round(gone / 60, 1),
        "steps": lines[-1],
        "samples": len(memory),
        "samples_without_a_step": sum(a == b for a, b in itertools.pairwise(lines)),
        "megabytes_after_warm_up": round(statistics.median(first), 1),
        "megabytes_at_the_end": round(statistics.median(last), 1),
        "growth": round(statistics.median(last) / statistics.median(first) - 1, 4),
        "open_files": [
            statistics.median(files[2 * part : 3 * part]),
            statistics.median(files[-part:]),
        ],
    }


#: For each part, whether what was found is as it should be.
SOUND: dict[str, Callable[[dict[str, Any]], bool]] = {
    "kills": lambda found: found["identical"] == found["total"],
    "disk_full": lambda found: (
        found["clear"] == found["whole"] == found["identical"] == found["moments"]
    ),
    "corruption": lambda found: not found["missed"] and found["detected"] == found["tried"],
    "two_runs": lambda found: found["refused"] == found["of"],
    "soak": lambda found: (
        found["growth"] < 0.03
        and len(set(found["open_files"])) == 1
        and found["samples_without_a_step"] == 0
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--only", action="append", choices=SOUND, help="only these parts")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder))
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "kills": lambda: kills(bench, given.kills, given.seed),
            "disk_full": lambda: disk_full(bench, given.seed),
            "corruption": lambda: corruption(bench),
            "two_runs": lambda: two_runs(bench),
        }
        if given.soak:
            parts["soak"] = lambda: soak(bench, given.soak)
        names = given.only or list(parts)
        if "soak" in names and "soak" not in parts:
            parser.error("--only soak needs --soak MINUTES")
        found = {name: parts[name]() for name in names}
    failed = [name for name in names if not SOUND[name](found[name])]
    if given.write:
        from native_reasoning.records.manifest import versions
        from native_reasoning.training.resume import machine

        about = {**machine(1), **versions(), "seed": given.seed}
        before = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
        text = json.dumps({**before, **found, "machine": about}, indent=2)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    if given.json:
        short = {
            name: {key: value for key, value in part.items() if key != "each"}
            for name, part in found.items()
        }
        print(json.dumps({**short, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
