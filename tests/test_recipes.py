"""The recipes resolve to what they say, and scaled-down twins of the paper's runs train."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from native_reasoning.cli import main
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.papers import PRESETS
from native_reasoning.config.recipe import make_config, read_recipe
from native_reasoning.data import load_examples
from native_reasoning.model.policy import load_policy
from native_reasoning.records.folder import read_config, read_metrics
from native_reasoning.report.runs import load_run
from native_reasoning.rollout.schedule import make_schedule, total_steps
from tiny import STRICT, byte_tokenizer, metaspace_tokenizer, tiny_model

FOLDER = Path(__file__).parents[1] / "recipes"
OASST = Path(__file__).resolve().parents[1] / "../shared/data/oasst/messages_train.jsonl"
RECIPES = sorted(FOLDER.glob("*.yaml"))
TULU = ("tulu3-llama3.1-8b", "tulu3-llama3.2-3b", "tulu3-mistral-7b")
#: The authors' script: what stands beside the model.
RELEASED = {
    "num_generations": 8,
    "temperature": 1.0,
    "max_prompt_length": 4096,
    "max_trace_length": 2048,
    "max_answer_length": 4096,
    "learning_rate": 2e-6,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-15,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "max_grad_norm": 1.0,
    "bf16": True,
    "activation_checkpointing": True,
}
#: Llama 3's headers, without its dates and tools.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# fmt: off
#: What makes a run small: fewer and shorter rows, 2 prompts per update, two rollouts.
TWIN = [
    "--use-cpu", "--max-prompt-length", "192", "--max-trace-length", "8", "--max-answer-length",
    "24", "--gradient-accumulation-steps", "2", "--steps-per-generation", "8", "--max-steps", "8",
    "--eval-samples", "1", "--save-steps", "8",
]
# fmt: on


def resolved(path: Path, **changed) -> NRTConfig:
    """A recipe's settings, for a machine with or without a GPU."""
    settings = read_recipe(path, given=("bf16",)) | changed
    kept = {k: v for k, v in settings.items() if k not in ("model", "data", "eval_data")}
    return make_config(kept, use_cpu=True)


def conversations(count: int) -> list[dict]:
    """Rows as tulu-3-sft-mixture has them: an id, turns, a source; a system turn before every
    third, an earlier exchange before every second."""
    rows = []
    for i in range(count):
        turns = [("system", "Be brief.")] if i % 3 == 0 else []
        turns += [("user", f"Name {i}."), ("assistant", f"{i}?")] if i % 2 == 0 else []
        turns += [("user", f"What is {i} + 1?"), ("assistant", f"It is {i + 1}.")]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append({"id": f"made_up_{i}", "messages": messages, "source": "made up"})
    return rows


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prepare(monkeypatch, rows: list[dict], *arguments: str) -> int:
    """Runs recipes/prepare_tulu3.py on these rows in place of the hub's."""
    path = FOLDER / "prepare_tulu3.py"
    spec = importlib.util.spec_from_file_location("prepare_tulu3", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked = []
    monkeypatch.setattr(
        module.datasets,
        "load_dataset",
        lambda name, split: asked.append((name, split)) or Dataset.from_list(rows),
    )
    code = module.main([str(argument) for argument in arguments])
    assert asked == ([("allenai/tulu-3-sft-mixture", "train")] if code == 0 else [])
    return code


# -- Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_resolves_without_network_model_or_data(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config, given = resolved(recipe), yaml.safe_load(recipe.read_text("utf-8"))
    assert {"model", "data"} <= given.keys()
    for name, value in config.resolved().items():
        assert given.get(name, value) == value
    assert make_schedule(0, config, 1).prompts == (
        given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    )
    assert config.max_steps == given["max_steps"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TULU)
def test_the_papers_runs_have_the_released_settings(name):
    config = resolved(FOLDER / f"{name}.yaml")
    assert {key: getattr(config, key) for key in RELEASED} == RELEASED
    schedule = make_schedule(0, config, 8)
    assert (schedule.prompts, schedule.minibatches, schedule.passes) == (64, 4, 1)
    # one epoch: 810 steps in the paper's counting are rollouts of 256 prompts, four of our steps
    steps = total_steps(schedule, config)
    assert (steps, steps * schedule.prompts, config.get_warmup_steps(steps)) == (3240, 207_360, 324)
    assert config.save_steps == 100 * schedule.minibatches


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_other_numbers_of_gpus_as_the_recipe_says(ranks):
    numbers = {"gradient_accumulation_steps": 64 // ranks, "steps_per_generation": 256 // ranks}
    schedule = make_schedule(0, resolved(FOLDER / f"{TULU[0]}.yaml", **numbers), ranks)
    assert (schedule.prompts, schedule.prompts * schedule.minibatches) == (64, 256)


def test_the_papers_runs_differ_in_the_model_alone():
    pages = [yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8")) for name in TULU]
    assert len({page.pop("model") for page in pages}) == 3
    assert pages[0] == pages[1] == pages[2]


# -- Data ------------------------------------------------------------------------------------------


def test_rows_are_prepared_as_the_released_code_chooses_them(tmp_path, monkeypatch, capsys):
    rows, out = conversations(40), tmp_path / "tulu3"
    assert prepare(monkeypatch, rows, "--out", out, "--train", "25", "--test", "10") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/test.jsonl: 10 of 40 rows",
        f"{out}/train.jsonl: 25 of 40 rows",
    ]
    parts = Dataset.from_list(rows).train_test_split(test_size=10, seed=42)
    for name, kept in (("train", parts["train"][:25]), ("test", parts["test"][:])):
        written = json_lines(out / f"{name}.jsonl")
        assert [row["id"] for row in written] == kept["id"]
        assert written[0]["messages"] == kept["messages"][0]
        read = load_examples(out, split=name)
        assert read.report.kept == len(written)
    assert {path.name for path in tmp_path.iterdir()} == {"tulu3"}
    before = (out / "train.jsonl").read_bytes()
    assert prepare(monkeypatch, rows, "--out", out) == 2
    assert "exists" in capsys.readouterr().err
    assert (out / "train.jsonl").read_bytes() == before


def test_the_last_assistant_turn_is_the_answer(tmp_path, monkeypatch):
    out = tmp_path / "tulu3"
    assert prepare(monkeypatch, conversations(13), "--out", out, "--test", "1") == 0
    examples = load_examples(out, split="train").examples
    first = next(e for e in examples if e.answer == "It is 7.")
    assert first.prompt == (
        ("system", "Be brief."),
        ("user", "Name 6."),
        ("assistant", "6?"),
        ("user", "What is 6 + 1?"),
    )


@pytest.mark.skipif(not OASST.is_file(), reason="the real rows are not beside this checkout")
def test_real_rows_of_the_same_shape(tmp_path, monkeypatch):
    rows, out = json_lines(OASST), tmp_path / "tulu3"
    assert prepare(monkeypatch, rows, "--out", out, "--test", "10") == 0
    train, test = (load_examples(out, split=name) for name in ("train", "test"))
    assert (train.report.read, test.report.read) == (len(rows) - 10, 10)
    assert (train.report.kept, test.report.kept) == (len(rows) - 10, 10)
    turns = {row["id"]: [m["content"] for m in row["messages"]] for row in rows}
    assert {e.answer for e in train.examples} <= {texts[-1].strip() for texts in turns.values()}


# -- Twins -----------------------------------------------------------------------------------------


def small(name: str, folder: Path) -> None:
    """A random model of the recipe's architecture, with a tokenizer of its kind.

    Llama 3's is byte-level and Mistral's has a ▁ for spaces. Base models may come without a chat
    template (the 8B twin), or be given one: Llama 3's headers, or Mistral's, which refuses system
    turns.
    """
    if name == "tulu3-mistral-7b":
        tokenizer = metaspace_tokenizer(chat_template=STRICT)
        model = tiny_model("mistral", sliding_window=None)  # as of version 0.2
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    else:
        tokenizer, model = byte_tokenizer(chat=False), tiny_model("llama")
        tokenizer.bos_token = "<|endoftext|>"
        if name == "tulu3-llama3.2-3b":
            tokenizer.add_tokens(
                ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True
            )
            tokenizer.chat_template = LLAMA3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("name", TULU)
def test_a_scaled_down_twin_of_the_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small(name, Path("model"))
    assert prepare(monkeypatch, conversations(101), "--test", "1") == 0
    recipe = Path(f"{name}.yaml")
    recipe.write_bytes((FOLDER / recipe).read_bytes())
    assert main(["train", str(recipe), "--model", "model", "--out", "run", *TWIN]) == 0
    read = "tulu3 [train]: 100 of 100 rows kept (messages; not used: id, source)"
    assert read in capsys.readouterr().err

    metrics = [line for line in read_metrics("run") if "loss" in line]
    assert len(metrics) == 8
    assert all(math.isfinite(line[key]) for line in metrics for key in ("loss", "grad_norm"))
    assert not any(line["skipped_updates"] for line in metrics)
    # two rollouts of 8 prompts with 8 traces, each of them trained on in 4 updates
    times = [line for line in json_lines(Path("run/timings.jsonl")) if "sampling_seconds" in line]
    assert [line["step"] for line in times if line["sampling_seconds"]] == [1, 5]
    traces = load_run("run").traces.to_pandas()
    assert len(traces) == 8 * 2 * 8
    assert traces.groupby("step")["row_id"].nunique().tolist() == [2] * 8
    config = read_config("run")["config"]
    assert {key: config[key] for key in ("adam_epsilon", "bf16", "activation_checkpointing")} == {
        "adam_epsilon": 1e-15,
        "bf16": True,
        "activation_checkpointing": True,
    }

    began = load_policy("model", NRTConfig(output_dir="unused", use_cpu=True)).model
    ended = AutoModelForCausalLM.from_pretrained("run/final")
    assert type(ended) is type(began)
    assert ended.config.model_type == name.split("-")[1].rstrip("0123456789.")
    tokenizer = AutoTokenizer.from_pretrained("run/final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<think>")
    opening, closing = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    tables = [(m.get_input_embeddings(), m.get_output_embeddings()) for m in (began, ended)]
    for token, table in ((opening, 0), (closing, 0), (closing, 1)):
        old, new = (both[table].weight.detach()[token] for both in tables)
        moved = (new - old).abs()
        assert 0 < moved.max() < 8 * 2 * 2e-6  # trained, at the recipe's rate


# -- The page --------------------------------------------------------------------------------------


def test_the_page_counts_as_it_says():
    text = (FOLDER.parent / "docs" / "reproduce.md").read_text("utf-8")
    for name in TULU:
        assert f"recipes/{name}.yaml" in text
    lines = [
        [c.strip() for c in row.split("|")[1:-1]] for row in text.splitlines() if "e9 |" in row
    ]
    assert len(lines) == 3
    for _, parameters, sampling, scoring, training, run, hours in lines:
        n, prompt, trace, answer, k = float(parameters), 300, 512, 415, 8
        tokens = prompt + k * trace + (k + 1) * answer
        parts = (2 * n * (prompt + k * trace), 2 * n * tokens, 8 * n * tokens)
        whole = sum(parts) * 207_360
        told = [f"{part:.1e}".replace("+", "") for part in (*parts, whole)]
        assert told == [sampling, scoring, training, run]
        assert f"{whole / (8 * 989e12 * 0.4) / 3600:.0f}" == hours
    presets = re.findall(r"--preset ([\w-]+)", text)
    assert presets
    assert all(name in PRESETS for name in presets)
