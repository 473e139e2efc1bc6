"""README.md of a saved folder: what it tells, and that nothing in it can do harm."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.papers import PRESETS
from native_reasoning.records import card
from native_reasoning.records.card import NAME, OURS, base_of, plain, write_card
from native_reasoning.records.disk import damage, seal
from native_reasoning.records.folder import RunFolder, read_config
from native_reasoning.training import checkpoints
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[1]
NASTY = "<img src=x onerror=alert(1)> | [x](javascript:y) ``` {{ 7*7 }} \x1b[31m\n# head"
TOKEN = "tok-" + "5ecret" * 3  # known by its setting alone: it does not look like one
TAGS = {"mode": "new", "open_text": "<think>", "close_text": "</think>"}


def trainer(folder, **changes):
    settings = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_trace_length": 4,
        "max_answer_length": 16,
        "max_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "hub_token": TOKEN,
        **changes,
    }
    return NRTTrainer(tiny_model(), NRTConfig(**settings), QA, QA[:4], byte_tokenizer())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was evaluated after its step, on its own questions and then on others, and its
    saved model's card."""
    made = trainer(tmp_path_factory.mktemp("card"))
    made.train()
    made.evaluate()
    made.evaluate(QA[:2])
    made.save_model(str(made.folder / "final"))
    return made, ModelCard.load(made.folder / "final" / NAME)


@pytest.fixture
def told(tmp_path):
    """The card of a run folder with these settings, entries of config.yaml and metrics."""

    def make(config=(), metrics=(), **extra):
        run = RunFolder(tmp_path / "run")
        config = {"preset": "nrt-ws", **dict(config)}
        about = {"boundary": TAGS, "data_report": ["qa.jsonl: 3 of 4 rows kept (a -> b)"], **extra}
        run.write_config(config, data_hash="0" * 64, seed=0, **about)
        (run.path / "metrics.jsonl").unlink(missing_ok=True)
        for line in metrics:
            run.append_metrics(7, line)
        write_card(tmp_path, run.path, 7)
        return (tmp_path / NAME).read_text("utf-8")

    return make


# -- What it tells ---------------------------------------------------------------------------------


def test_the_card_of_a_run_tells_method_data_settings_and_evaluation(trained):
    made, page = trained
    text = page.text
    assert page.data.library_name == "transformers"
    assert page.data.pipeline_tag == "text-generation"
    assert page.data.license == "unknown"
    assert page.data.base_model is None
    assert {"native-reasoning", "nrt-ws"} <= set(page.data.tags)
    config = read_config(made.folder)
    assert f"`{config['data_hash']}`" in text
    assert "12 of 12 rows" in text
    assert "optimiser steps | 1 |" in text
    assert "state at the end | healthy" in text
    assert "4 held-out questions at step 1" in text
    accuracy = [line for line in text.splitlines() if line.startswith("| accuracy")]
    assert len(accuracy) == 4  # with and without thinking, sampled and greedy
    assert all(line.count(" to ") == 1 for line in accuracy)
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("\n```")[0])
    assert settings["max_trace_length"] == 4
    assert settings["num_generations"] == 2
    assert "output_dir" not in settings


def test_no_secret_and_no_place_of_the_machine_is_told(trained):
    made, page = trained
    assert TOKEN not in str(page)
    assert str(made.folder.parent) not in str(page)


def test_no_setting_tells_a_place(told):
    settings = {
        "chat_template_path": "/home/alice/chat.jinja",
        "resume_from_checkpoint": "runs/alice/checkpoint-3",
        "deepspeed": {"nvme_path": "/home/alice/nvme"},
        "model_init_kwargs": {"cache_dir": "/home/alice/c", "offload_folder": "~/alice s/d"},
        "optim_args": "state=/home/alice/state.pt, rank=2",
        "lora_target_modules": ["C:\\alice\\x.txt", "../../alice/q_proj"],
        "run_name": "alice",
        "eval_data": "/home/alice/qa",
        "system_prompt": "/no_think",
        "learning_rate": 1e-3,
    }
    text = told({"model": "/home/alice/base", **settings})
    assert "alice" not in text
    shown = yaml.safe_load(text.partition("```yaml\n")[2].partition("\n```")[0])
    assert shown == {"learning_rate": 1e-3, "system_prompt": "/no_think"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("~/clinic/patients/qa.jsonl", "qa.jsonl"),
        ("../../alice/qa.jsonl", "qa.jsonl"),
        ("/home/alice/qa", "qa"),
        ("alice/qa.jsonl", "qa.jsonl"),
        ("tests/data", "data"),
        ("owner/name", "owner/name"),
        ("owner/name:main [train]", "owner/name:main [train]"),
        ("the list of rows", "the list of rows"),
    ],
)
def test_data_are_told_by_their_last_name_or_by_their_hub_id(name, shown, told, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = told(data_report=[f"{name}: 3 of 4 rows kept (question -> answer)"])
    assert f"| data | {plain(shown)}: 3 of 4 rows |" in text


def test_an_evaluation_that_was_not_made_is_said(told):
    text = told()
    assert "None was made." in text
    assert "Whether thinking helps was not measured." in text
    assert "nobody wrote or judged one" in text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.1, 0.2, "no difference"), (-0.3, -0.1, "worse"), (0.1, 0.3, "say nothing about others")],
)
def test_limits_say_whether_thinking_helped(low, high, said, told):
    gain = {"eval_accuracy_gain_low": low, "eval_accuracy_gain_high": high}
    evaluation = {"eval_accuracy": 0.5, "eval_questions": 9, **gain}
    text = told(metrics=[{"collapse_state": 2.0}, evaluation])
    assert said in text
    assert ("no difference" in text) == (low <= 0 <= high)
    assert "9 held-out questions at step 7" in text
    assert "The run was collapsed when it ended" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_card(preset, told):
    text = told({"preset": preset})
    control = preset in ("sft", "sft-think", "rlvr", "format-only", "permuted")
    assert ("control" in text.split("## Use")[0]) == control
    assert f"`{preset}`" in text


def test_a_text_boundary_is_said_in_the_card_and_when_it_is_saved(told, tmp_path, capsys):
    text = told(boundary={"mode": "text", "open_text": "", "close_text": "\nThe answer is"})
    assert "trace and answer as one text" in text
    assert "'The answer is'" in text
    assert "reasoning-parser" not in text
    trainer(tmp_path / "other", boundary="text").save_model(str(tmp_path / "final"))
    assert "enable_thinking does nothing" in capsys.readouterr().err
    assert not (tmp_path / "final" / NAME).exists()  # no run is behind it


def test_a_system_prompt_is_part_of_the_use(told):
    used = told({"system_prompt": "Be brief."}).split("## Training")[0]
    assert "send it as the first turn" in used
    assert "system_prompt" not in told().split("## Training")[0]


def test_functions_of_ones_own_are_named(told):
    text = told({"reward_funcs": ["my_reward"]})
    assert "functions of the trainer's own" in text
    assert "my\\_reward" in text


# -- The base model --------------------------------------------------------------------------------


def readme(folder, front):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(f"---\n{front}\n---\ntext", encoding="utf-8")
    return str(folder)


def test_the_licence_is_the_bases_own(told, tmp_path):
    base = base_of(readme(tmp_path / "model", "license: mit\nbase_model: owner/first"))
    assert base == {"name": "model", "head": {"license": "mit"}}
    other = readme(tmp_path / "b", "license: other\nlicense_name: own\nlicense_link: https://x.y")
    told({"model": other})
    data = ModelCard.load(tmp_path / NAME).data
    assert (data.license, data.license_name, data.license_link) == ("other", "own", "https://x.y")


@pytest.mark.parametrize(
    "front",
    [
        "license: [mit, apache-2.0]",
        "license: 'mit\n\n<b>'",
        "license: &a [*a]",
        "- a\n- b",
        "license: 7",
        "a: b: c",
        "text: x",
    ],
)
def test_a_licence_that_cannot_be_read_is_unknown(front, tmp_path):
    assert base_of(readme(tmp_path / "model", front))["head"] == {}


def test_a_base_without_a_card_or_a_name_is_unknown(tmp_path, monkeypatch):
    assert base_of(str(tmp_path)) == {"name": tmp_path.name, "head": {}}
    (tmp_path / NAME).write_bytes(b"\xff" * 9)
    assert base_of(str(tmp_path))["head"] == {}
    monkeypatch.chdir(readme(tmp_path / "here", "license: mit"))
    assert base_of("") == {"name": "", "head": {}}
    (tmp_path / "first" / "final").mkdir(parents=True)
    assert base_of(str(tmp_path / "first" / "final"))["name"] == "first/final"


def test_the_hub_is_asked_once_and_may_be_silent(monkeypatch):
    asked = []

    def info(name, timeout):
        asked.append((name, timeout))
        if len(asked) > 1:
            raise ConnectionError("no network")
        return SimpleNamespace(card_data=ModelCardData(license="mit", base_model="owner/first"))

    monkeypatch.setattr(card, "model_info", info)
    assert base_of("owner/name")["head"] == {"base_model": "owner/name", "license": "mit"}
    assert base_of("owner/name")["head"] == {"base_model": "owner/name"}
    assert asked == [("owner/name", 5.0)] * 2


def test_a_model_trained_from_a_saved_one_keeps_base_and_licence(tmp_path):
    head = "license: apache-2.0\nbase_model: owner/name"
    readme(tmp_path, head)
    (tmp_path / NAME).write_text(f"---\n{head}\n---\n{OURS}", encoding="utf-8")
    assert base_of(str(tmp_path))["head"] == {"base_model": "owner/name", "license": "apache-2.0"}


# -- Harmless --------------------------------------------------------------------------------------


def test_names_and_settings_cannot_write_markdown_or_html(told):
    text = told(
        {
            "model": "./" + NASTY,
            "system_prompt": NASTY + "\n```\n<script>alert(2)</script>\n````",
            "reward_funcs": [NASTY],
        },
        data_report=[f"{NASTY.replace(chr(10), '')}: 1 of 1 rows"],
    )
    body = text.partition(OURS)[2]
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    assert "<img" not in page
    assert "<script" not in page
    assert 'href="javascript' not in page
    assert "\x1b" not in page
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == 5
    assert "{{ 7" in text.replace("\\", "")


def test_metadata_takes_no_base_that_is_no_name(tmp_path):
    readme(tmp_path, f"base_model: {NASTY!r}")
    with (tmp_path / NAME).open("a") as file:
        file.write(OURS)
    assert base_of(str(tmp_path))["head"] == {}


def test_escaped_text_reads_as_it_was():
    page = MarkdownIt().render(plain("a_b|<think> *x* #1 $y$"))
    assert page == "<p>a_b|&lt;think&gt; *x* #1 $y$</p>\n"


# -- Files -----------------------------------------------------------------------------------------


def test_a_card_of_somebodys_own_stays(told, tmp_path):
    told()
    assert "| optimiser steps | 7 |" in told()
    text = (tmp_path / NAME).read_text("utf-8").replace("steps | 7", "steps | 6")
    (tmp_path / NAME).write_text(text, encoding="utf-8")
    assert "| optimiser steps | 7 |" in told()
    (tmp_path / NAME).write_text(text.replace(OURS, "mine"), encoding="utf-8")
    assert "mine" in told()


def test_a_card_that_was_written_anew_is_no_damage(told, tmp_path):
    told()
    folder = Path(shutil.copytree(tmp_path, tmp_path.with_name("sealed")))
    seal(folder)
    (folder / NAME).write_text("mine")
    assert damage(folder) == []


def test_a_card_that_fails_does_not_take_the_model_with_it(trained, tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise ValueError("no card today")

    monkeypatch.setattr(checkpoints, "write_card", broken)
    trained[0].checkpoints.save_whole_model(tmp_path / "final")
    held = {path.name for path in (tmp_path / "final").iterdir()}
    assert "model.safetensors" in held
    assert NAME not in held
    assert "ValueError: no card today" in capsys.readouterr().err


def test_the_trainer_uploads_nothing(trained):
    with pytest.raises(ConfigError) as caught:
        trained[0].push_to_hub()
    assert "hf upload" in caught.value.fix


def test_the_sdist_has_no_tests_that_would_miss_their_files():
    held = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {"README.md", "LICENSE", "src/native_reasoning/records/card.md.jinja"} <= held
    assert not [path for path in held if path.startswith("tests/")]
    assert sum((ROOT / path).stat().st_size for path in held) < 6_000_000
