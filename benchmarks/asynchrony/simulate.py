"""Would overlapping be faster? ``python benchmarks/asynchrony/simulate.py --json --run RUN``.

A simulation, not a measurement: no GPU was at hand. What was measured, on CPUs, is in the results
under ``measured``; everything about GPUs is in ``Assumptions``, each with where it comes from.

A rollout is sampled, then trained on in several updates, then the weights go to the samplers:

    s_n = max(s_end_{n-1}, t_end_{n-1-lag})      sampling of rollout n may begin
    t_n = max(t_end_{n-1}, s_end_n)              training on it may begin; then weights are sent

*colocated*: every GPU samples, waits for the slowest, then trains. *split*: some GPUs sample, the
others train, in turns (lag 0). *overlap*: the same with lag 1: rollout n is sampled by weights that
have not seen rollout n-1. For both the best number of samplers is looked for. Without variance a
rollout takes max(S, T, (S + T) / (1 + lag)) seconds, T with the sending.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).with_name("results.json")
SIZES, LOADS = (8, 64, 512), (32, 4)
#: Shares of the GPUs that may be samplers, in sixteenths, where that is a whole number of GPUs.
SHARES = (1, 2, 3, 4, 6, 8, 10, 12, 14)
#: How often the rollouts that were drawn are gone through, so that beginning and end hardly count.
TURNS = 20
NODE = 8


@dataclass(frozen=True)
class Assumptions:
    """recipes/tulu3-llama3.1-8b.yaml on H100s. *guess* is ours; the rest has a source."""

    parameters: float = 8.03e9  # the model card
    traces: int = 8  # the recipe: of a prompt
    updates: int = 4  # the recipe: of a rollout
    prompt: int = 300  # guess (docs/reproduce.md), tokens
    trace: float = 512.0  # guess (docs/reproduce.md), mean tokens before the limit cuts
    limit: int = 2048  # the recipe
    answer: int = 415  # secondary source (docs/reproduce.md)
    spread: float = 1.0  # guess: standard deviation over mean of a trace's length, log-normal
    flops: float = 989e12  # data sheet: bf16, dense, per second
    efficiency: float = 0.4  # guess (docs/reproduce.md): of the arithmetic of all stages
    memory: float = 3.35e12  # data sheet: bytes per second
    cache: float = 131_072  # bytes of a token: 32 layers x 8 heads x 128 x 2 x bf16
    rows: int = 256  # guess: traces that a GPU samples at once, if there is room
    room: float = 40e9  # guess: bytes of a GPU for their keys and values
    overhead: float = 2e-3  # guess: seconds of a decoding step beside memory and arithmetic
    network: float = 50e9  # bytes per second and GPU between nodes: a 400 Gb/s port each
    sending: float = 2.0  # guess: seconds to hand weights over, besides their bytes
    slower: float = 1.0  # all decoding, times this: for the table over the ratio

    def decoding(self, active: np.ndarray) -> np.ndarray:
        """Seconds of a decoding step with so many rows on a GPU: the larger of what memory and
        arithmetic take."""
        context = self.prompt + self.trace
        moved = (2 * self.parameters + active * context * self.cache) / self.memory
        counted = 2 * self.parameters * active / (self.flops * self.efficiency)
        return self.slower * (np.maximum(moved, counted) + self.overhead)

    def at_once(self) -> int:
        """Traces that a GPU samples at once."""
        return max(1, min(self.rows, int(self.room / ((self.prompt + self.trace) * self.cache))))

    def weights(self) -> float:
        """Seconds to send the weights (bf16) from a node to all samplers, in a chain of nodes."""
        return self.sending + 2 * self.parameters / (NODE * self.network)

    def reducing(self, gpus: int) -> float:
        """Seconds of an update in which gradients (float32) cross nodes; each GPU has an eighth.
        Inside a node communication is taken as hidden."""
        nodes = max(gpus / NODE, 1)
        return 2 * 4 * self.parameters / NODE / self.network * (nodes - 1) / nodes


# -- Stages ----------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, a: Assumptions, prompts: int) -> np.ndarray:
    """Lengths of a rollout's traces (prompts, K), whole tokens from 1 to the limit."""
    shape = (prompts, a.traces)
    if a.spread == 0:
        return np.full(shape, min(round(a.trace), a.limit))
    sigma = np.sqrt(np.log1p(a.spread**2))
    lengths = rng.lognormal(np.log(a.trace) - sigma**2 / 2, sigma, shape)
    return np.clip(np.rint(lengths), 1, a.limit).astype(int)


def sampling_seconds(lengths: np.ndarray, gpus: int, a: Assumptions) -> np.ndarray:
    """(gpus,) seconds until each has sampled its prompts, dealt round robin, one model a GPU; a
    row that ends makes room for the next."""
    mine = -(-len(lengths) // gpus) * a.traces
    waiting = np.zeros((gpus, mine))
    for gpu in range(gpus):
        own = lengths[gpu::gpus].ravel()
        waiting[gpu, : own.size] = own
    slots, all_gpus = min(a.at_once(), mine), np.arange(gpus)
    ends = np.where(waiting[:, :slots] > 0, waiting[:, :slots], np.inf)  # on the GPU's token clock
    clock, seconds = np.zeros(gpus), np.zeros(gpus)
    for event in range(mine):
        active = np.isfinite(ends).sum(1)
        first = ends.argmin(1)
        upto = np.where(active > 0, ends[all_gpus, first], clock)
        seconds += (upto - clock) * a.decoding(active)
        clock = upto
        following = waiting[:, slots + event] if slots + event < mine else np.zeros(gpus)
        ends[all_gpus, first] = np.where(following > 0, clock + following, np.inf)
    prefill = -(-len(lengths) // gpus) * 2 * a.parameters * a.prompt / (a.flops * a.efficiency)
    return seconds + prefill


def training_seconds(lengths: np.ndarray, gpus: int, a: Assumptions) -> float:
    """Scoring once and all updates; in each the slowest GPU counts. A prompt is not divided."""
    tokens = a.prompt + lengths.sum(1) + (a.traces + 1) * a.answer
    seconds = 0.0
    for part in np.array_split(tokens, a.updates):
        most = max(part[gpu::gpus].sum() for gpu in range(min(gpus, len(part))))
        seconds += (2 + 8) * a.parameters * most / (a.flops * a.efficiency) + a.reducing(gpus)
    return float(seconds)


# -- Schedules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timeline:
    """When each rollout's sampling and training began and ended."""

    sampling: list[tuple[float, float]]
    training: list[tuple[float, float]]

    @property
    def seconds(self) -> float:
        """Until the last rollout was trained on."""
        return self.training[-1][1]


def timeline(sampling: Sequence[float], training: Sequence[float], lag: int) -> Timeline:
    """The recursion of the module's head; ``training`` has the sending of weights in it."""
    s: list[tuple[float, float]] = []
    t: list[tuple[float, float]] = []
    for n, (sample, train) in enumerate(zip(sampling, training, strict=True)):
        free = s[-1][1] if s else 0.0
        fresh = t[n - 1 - lag][1] if n > lag else 0.0
        begin = max(free, fresh)
        s.append((begin, begin + sample))
        begin = max(t[-1][1] if t else 0.0, s[-1][1])
        t.append((begin, begin + train))
    return Timeline(s, t)


def period(sample: float, train: float, lag: int) -> float:
    """Seconds of a rollout in the long run, where none differs from another: the slowest of the
    sampler's cycle, the trainer's, and the one through both that ``lag`` + 1 rollouts share."""
    return max(sample, train, (sample + train) / (1 + lag))


def compare(a: Assumptions, gpus: int, load: int, rollouts: int, seed: int) -> dict[str, float]:
    """Seconds of a rollout of ``gpus`` x ``load`` prompts under each schedule."""
    rng = np.random.default_rng(seed)
    drawn = [draw(rng, a, gpus * load) for _ in range(rollouts)]
    each = [sampling_seconds(lengths, gpus, a) for lengths in drawn]
    samples = [float(seconds.max()) for seconds in each]
    trains = [training_seconds(lengths, gpus, a) for lengths in drawn]
    found = {
        "sampling": float(np.mean(samples)),
        "training": float(np.mean(trains)),
        "waiting_for_slowest": float(1 - np.mean([e.mean() for e in each]) / np.mean(samples)),
        "colocated": float(np.mean(samples) + np.mean(trains)) + a.weights(),
    }
    for name, lag in (("split", 0), ("overlap", 1)):
        best = (np.inf, 0)
        for share in SHARES:
            samplers, rest = divmod(gpus * share, 16)
            if rest:
                continue
            s = [float(sampling_seconds(lengths, samplers, a).max()) for lengths in drawn]
            t = [training_seconds(lengths, gpus - samplers, a) + a.weights() for lengths in drawn]
            whole = timeline(s * TURNS, t * TURNS, lag).seconds
            best = min(best, (whole / TURNS / rollouts, samplers))
        found |= {name: float(best[0]), f"{name}_samplers": best[1]}
    found["gain"] = found["colocated"] / found["overlap"]
    return found


def table(a: Assumptions, gpus: int, load: int, rollouts: int, seeds: int) -> dict[str, float]:
    """The mean over seeds of every figure, and the range of the gain."""
    runs = [compare(a, gpus, load, rollouts, seed) for seed in range(seeds)]
    out = {name: round(float(np.mean([run[name] for run in runs])), 3) for name in runs[0]}
    gains = [run["gain"] for run in runs]
    out["gain_range"] = [round(min(gains), 3), round(max(gains), 3)]
    return {"gpus": gpus, "prompts_per_gpu": load, **out}


def at_ratio(a: Assumptions, ratio: float, gpus: int, load: int) -> Assumptions:
    """The same with decoding so much slower that colocated sampling : training is ``ratio``."""
    lengths = draw(np.random.default_rng(0), a, gpus * load)
    train = training_seconds(lengths, gpus, a)
    sampled = [
        float(sampling_seconds(lengths, gpus, replace(a, slower=x)).max()) for x in (0.0, 1.0)
    ]
    return replace(a, slower=(ratio * train - sampled[0]) / (sampled[1] - sampled[0]))


# -- What was measured -----------------------------------------------------------------------------


def measured(run: Path | None) -> dict:
    """Sampling : training on CPUs, from benchmarks/speed.json, and from a run folder, if one is
    given, with how its traces' lengths are spread."""
    speed = json.loads(RESULTS.parents[1].joinpath("speed.json").read_text("utf-8"))
    found = {}
    for name in ("short", "long-trace"):
        stages = speed[name]["ours"]["stages"]
        rest = sum(stages[stage] for stage in ("scoring", "backward", "optimiser"))
        found[f"speed.json, {name}"] = {"ratio": round(stages["sampling"] / rest, 2)}
    if run is not None:
        import pyarrow.parquet as pq

        lines = map(json.loads, (run / "timings.jsonl").read_text("utf-8").splitlines())
        steps = [line for line in lines if "step_seconds" in line]
        sampled, whole = (
            sum(s[key] for s in steps) for key in ("sampling_seconds", "step_seconds")
        )
        lengths = np.array(pq.read_table(run / "traces")["length"].to_pylist())
        found["run"] = {
            "ratio": round(sampled / (whole - sampled), 2),
            "traces": len(lengths),
            "mean": round(float(lengths.mean()), 2),
            "spread": round(float(lengths.std() / lengths.mean()), 2),
            "longest": int(lengths.max()),
        }
    return found


def main() -> None:
    """Prints the tables, or writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help=f"writes {RESULTS.name}")
    parser.add_argument("--rollouts", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a run folder, for what is measured")
    own = parser.parse_args()
    a, few = Assumptions(), (own.rollouts, own.seeds)
    found = {
        "command": "python benchmarks/asynchrony/simulate.py --json",
        "assumptions": asdict(a),
        "rollouts": own.rollouts,
        "seeds": own.seeds,
        "measured": measured(own.run),
        "sizes": [table(a, gpus, load, *few) for load in LOADS for gpus in SIZES],
        "ratio": {
            str(ratio): table(at_ratio(a, ratio, 64, 32), 64, 32, *few)
            for ratio in (0.1, 0.25, 0.5, 1, 2, 4, 8)
        },
        "spread": {str(x): table(replace(a, spread=x), 64, 32, *few) for x in (0, 0.5, 1, 2)},
        "limit": {
            str(x): table(replace(a, limit=x, trace=x / 4), 64, 32, *few)
            for x in (512, 2048, 8192, 32768)
        },
    }
    text = json.dumps(found, indent=1)
    print(text)
    if own.json:
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
