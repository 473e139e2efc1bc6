"""Malformed data files and recipes: three lines and exit code 2, never a traceback or a hang."""

import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from native_reasoning.cli import main
from native_reasoning.config.errors import ConfigError
from native_reasoning.config.recipe import GUARDED_IN_RECIPES, read_recipe
from native_reasoning.config.settings import NRTOptions

settings.register_profile(
    "fuzz", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

# -- Generated inputs ------------------------------------------------------------------------------

NASTY = st.sampled_from(
    [
        "\ud800",
        "\x00",
        "\x1b[2J",
        "\u202e",
        "</think>",
        "<|im_end|>",
        "{{ 1 }}",
        "\ufeff",
        "a" * 9999,
    ]
)
TEXT = st.one_of(st.text(max_size=30), NASTY)
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.just(10**400), st.just(-0.0)
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "x"]) | VALUE,
        "content": VALUE,
    },
)
COLUMN = st.sampled_from(
    ["question", "answer", "prompt", "completion", "messages", "instruction", "output", "text", ""]
)
ROW = st.dictionaries(COLUMN | TEXT, VALUE | st.lists(TURN, max_size=4), max_size=5) | VALUE
BYTES = st.binary(max_size=300)


def _line(row) -> bytes:
    return json.dumps(row).encode() + b"\n"


JSONL = st.lists(
    st.one_of(ROW.map(_line), BYTES, ROW.map(lambda r: _line(r)[:-4]), st.just(b"[" * 5000)),
    max_size=6,
).map(b"".join)
JSON = st.one_of(BYTES, st.lists(ROW, max_size=4).map(lambda x: json.dumps(x).encode()))
CSV = st.one_of(BYTES, st.text(alphabet='a",;\n\r\t\x00é', max_size=200).map(str.encode))
PARQUET = BYTES.map(lambda b: b"PAR1" + b + b"PAR1") | BYTES
FILES = {"jsonl": JSONL, "json": JSON, "csv": CSV, "tsv": CSV, "parquet": PARQUET}


def refused(capsys, *command: str) -> str:
    """Runs the command in this process; what it said."""
    code = main(list(command))
    out = capsys.readouterr()
    assert code in (0, 2), out.err
    if code == 2:
        assert out.err.splitlines()[-3].startswith("error: "), out.err
        assert [line.split(":")[0].strip() for line in out.err.splitlines()[-2:]] == ["why", "fix"]
    assert "\x1b" not in out.err + out.out
    return out.err


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory):
    """Importing torch is not what is timed."""
    path = tmp_path_factory.mktemp("first") / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    assert main(["check", str(path)]) == 0
    main(["train", "--data", str(path), "--model", "./none", "--use-cpu", "--out", "none"])


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", FILES)
def test_malformed_data(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"rows.{kind}"

    @settings(settings.get_profile("fuzz"), max_examples=80)
    @given(FILES[kind])
    def check(data: bytes) -> None:
        path.write_bytes(data)
        refused(capsys, "check", str(path))
        assert everything(tmp_path) == {str(path)}

    check()


NAMES = st.sampled_from(
    [
        "model", "data", "preset", "learning_rate", "num_generations", "max_steps", "clip", "scale",
        "reward_funcs", "model_init_kwargs", "answer_regex", "boundary", "save_steps", "report_to",
        "output_dir", "objective", "lr_scheduler_type", "optim", "deepspeed", "fsdp", "torch_dtype",
    ]
)  # fmt: skip
RECIPE = st.one_of(
    st.dictionaries(NAMES | TEXT, VALUE, max_size=5).map(
        lambda values: yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
    ),
    st.text(alphabet="ab:-[]{}&*!?|>'\"%@`#, \n\t0123456789.", max_size=120).map(str.encode),
    BYTES,
)


def test_malformed_recipes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"

    @settings(settings.get_profile("fuzz"), max_examples=200)
    @given(RECIPE, st.booleans())
    def check(text: bytes, named: bool) -> None:
        path.write_bytes(text)
        given = ["--data", "none.jsonl", "--model", "./none", "--use-cpu"] if named else []
        refused(capsys, "train", str(path), *given)
        assert everything(tmp_path) == {str(path)}

    check()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",  # doubles with every line
        "[" * 5000,
        "{a: " * 3000,
        "preset: 2024-99-99\n",
        "? [a]\n: b\n",
        "!!python/object/apply:os.system ['touch harmed']\n",
        "preset: !!int ''\n",
        "a" * 1_000_001,
        "a: [" + "[" * 999,
        "- " * 50_000,
        "preset: 'nrt-ws\n",
        "<<: 5\n",
    ],
)
def test_recipes_that_are_traps(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_recipe(path)
    assert os.listdir(tmp_path) == ["recipe.yaml"]


# -- Whom a recipe may vouch for -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["trust_remote_code: true", "trust-remote-code: 1", "config: {trust_remote_code: true}"]
)
def test_code_of_a_model_is_not_run_for_a_recipe_from_elsewhere(text, tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    for folder in (here, elsewhere):
        (folder / "recipe.yaml").write_text(text)
    assert read_recipe(here / "recipe.yaml")
    assert read_recipe(elsewhere / "recipe.yaml", given={"trust_remote_code": True})
    (here / "link.yaml").symlink_to(elsewhere / "recipe.yaml")
    for path in (elsewhere / "recipe.yaml", here / "link.yaml", "../elsewhere/recipe.yaml"):
        with pytest.raises(ConfigError, match="trust_remote_code in recipe"):
            read_recipe(path)
    (elsewhere / "recipe.yaml").write_text("trust_remote_code: false")
    assert read_recipe(elsewhere / "recipe.yaml") == {"trust_remote_code": False}


@pytest.mark.parametrize(
    "text",
    [
        "model_init_kwargs: {attn_implementation: someone/kernel}",
        "model_init_kwargs: {allow_all_kernels: true}",
        "model_init_kwargs: {cache_dir: /somewhere}",
        """model_init_kwargs: '{"dtype": "float32"}'""",
        "report_to: wandb",
        "report-to: [wandb]",
        "deepspeed: ds.json",
        "fsdp_config: f.json",
        "accelerator_config: a.json",
        "parallelism_config: {tp_size: 2}",
        "optim_target_modules: (a|aa)+$",
        "trackio_space_id: someone/space",
        "vllm_server_base_url: http://somewhere:8000",
    ],
)
def test_what_only_the_user_of_a_recipe_asks_for(text, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    name = text.split(":")[0].replace("-", "_")
    for path in (tmp_path / "recipe.yaml", here / "recipe.yaml"):
        path.write_text(text)
    assert read_recipe("recipe.yaml")
    assert read_recipe("../recipe.yaml", given={name: "x"})
    with pytest.raises(ConfigError, match=f"{name} in recipe"):
        read_recipe("../recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(f"config: {{{text}}}")  # dressed up as a run's
    with pytest.raises(ConfigError, match=f"{name} in recipe"):
        read_recipe("../recipe.yaml")
    if name in GUARDED_IN_RECIPES:
        assert read_recipe("../recipe.yaml", going_on=True)
    else:
        with pytest.raises(ConfigError, match=f"{name} in recipe"):
            read_recipe("../recipe.yaml", going_on=True)


def test_what_is_plain_needs_no_word_of_the_user(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    values = {
        "model_init_kwargs": {"attn_implementation": "sdpa", "dtype": "bfloat16"},
        "report_to": "none",
        "trust_remote_code": False,
        "learning_rate": 1e-4,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert read_recipe("../recipe.yaml") == values


#: Arguments of transformers that neither send, nor load code, nor name files for a library.
PLAIN = """
adam_beta1 adam_beta2 adam_epsilon activation_checkpointing activation_checkpointing_kwargs
auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval data_seed
dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend
ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
debug disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps
eval_delay eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object fp16
fp16_full_eval fsdp full_determinism gradient_accumulation_steps gradient_checkpointing
gradient_checkpointing_kwargs greater_is_better ignore_data_skip include_for_metrics
include_num_input_tokens_seen label_names label_smoothing_factor learning_rate length_column_name
liger_kernel_config load_best_model_at_end local_rank log_level log_level_replica log_on_each_node
logging_first_step logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs
lr_scheduler_type max_grad_norm max_steps metric_for_best_model neftune_noise_alpha num_train_epochs
optim optim_args per_device_eval_batch_size per_device_train_batch_size prediction_loss_only
remove_unused_columns restore_callback_states_from_checkpoint resume_from_checkpoint run_name
save_on_each_node save_only_model save_steps save_strategy save_total_limit seed skip_memory_metrics
tf32 torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
train_sampling_strategy use_cache use_cpu use_liger_kernel warmup_steps weight_decay
"""
#: push_to_hub is refused by NRTConfig, the others do nothing without it, and output_dir is looked
#: at by the command line.
ELSEWHERE = """
push_to_hub hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token
output_dir
"""


def test_each_argument_of_transformers_has_been_looked_at():
    known = {f.name for f in fields(TrainingArguments)}
    ours = {f.name for f in fields(NRTOptions)}
    assert known == {*GUARDED_IN_RECIPES, *PLAIN.split(), *ELSEWHERE.split()} - ours


def test_a_recipe_writes_into_the_working_folder_only(tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (here / "~").mkdir()
    for place in (str(tmp_path / "out"), "../out", "~/out", "~/../out", "runs/../../out"):
        recipe = {"model": "m", "data": "d.jsonl", "output_dir": place}
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert re.search(
            "output_dir .* recipe|output_dir in recipe", refused(capsys, "train", "recipe.yaml")
        )
    assert everything(tmp_path) == {str(here), str(here / "~"), str(here / "recipe.yaml")}


@pytest.mark.parametrize(
    "text",
    [
        "save_total_limit: [1]",
        "optim_args: 5",
        "seed: -1",
        "learning_rate: [1]",
        "adam_beta1: 5",
        "optim: galore_adamw",
        "optim: no_such_optimizer",
        "lr_scheduler_type: 7",
        "lr_scheduler_kwargs: {no_such_argument: 1}",
        "push_to_hub: true",
        "save_strategy: best\neval_strategy: steps\nmetric_for_best_model: accuracy",
        "metric_for_best_model: loss",
        "chat_template_path: fifo",
    ],
)
def test_values_that_only_show_when_training_begins(text, tmp_path, capsys, monkeypatch):
    from native_reasoning.demo import base_path

    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("recipe.yaml").write_text(f"model: {base_path()}\ndata: qa.jsonl\nuse_cpu: true\n{text}\n")
    Path("qa.jsonl").write_text('{"question": "A 1 2 3 4", "answer": "5"}\n')
    told = refused(capsys, "train", "recipe.yaml", "--out", "run", "--max-steps", "1")
    assert "error: " in told
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_pattern_that_runs_away_is_stopped(tmp_path):
    from native_reasoning.data import load_examples

    rows = [{"question": "q", "answer": "a" * 40}, {"question": "r", "answer": "b"}]
    with pytest.raises(ConfigError, match="ran out of time"):
        load_examples(rows, answer_regex="(a|aa)+$^")
