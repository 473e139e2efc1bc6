"""README.md of a saved folder: what it tells, and that nothing in it can do harm."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import LocalEntryNotFoundError
from markdown_it import MarkdownIt

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.papers import PRESETS, find_preset
from native_reasoning.data.template import make_template
from native_reasoning.records.bases import NAME, OURS, Base, find_base
from native_reasoning.records.card import Facts, body, plain, write_card
from native_reasoning.records.disk import damage, seal
from native_reasoning.records.folder import read_config
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model

NASTY = "<img src=x onerror=alert(1)> | [x](javascript:y) ``` {{ 7*7 }} \x1b[31m\n# head"


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
        "hub_token": "hf_" + "s3cret" * 4,
        **changes,
    }
    return NRTTrainer(tiny_model(), NRTConfig(**settings), QA, QA[:4], byte_tokenizer())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was evaluated after its step, and its saved model's card."""
    made = trainer(tmp_path_factory.mktemp("card"))
    made.train()
    made.evaluate()
    made.save_model(str(made.folder / "final"))
    return made, ModelCard.load(made.folder / "final" / NAME)


def facts(**changes):
    known = {
        "name": "first",
        "base": Base("owner/name", "owner/name", "apache-2.0"),
        "preset_name": "nrt-ws",
        "preset": find_preset("nrt-ws"),
        "boundary": make_template(byte_tokenizer()).boundary,
        "steps": 7,
        "settings": {"learning_rate": 1e-6},
        "versions": {"torch": "2.13.0"},
    }
    return Facts(**{**known, **changes})


# -- What it tells ---------------------------------------------------------------------------------


def test_the_card_of_a_run_tells_method_data_settings_and_evaluation(trained):
    made, card = trained
    text = card.text
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    assert {"native-reasoning", "nrt-ws"} <= set(card.data.tags)
    config = read_config(made.folder)
    assert f"`{config['data_hash']}`" in text
    assert "12 of 12 rows" in text
    assert "optimiser steps | 1 |" in text
    assert "state at the end | healthy" in text
    assert "4 held-out questions at step 1" in text
    accuracy = [line for line in text.splitlines() if line.startswith("| accuracy |")]
    assert len(accuracy) == 1
    assert accuracy[0].count(" to ") == 2
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("\n```")[0])
    assert settings["max_trace_length"] == 4
    assert settings["num_generations"] == 2
    assert "output_dir" not in settings


def test_no_secret_and_no_place_of_the_machine_is_told(trained):
    made, card = trained
    assert "s3cret" not in str(card)
    assert str(made.folder.parent) not in str(card)


def test_an_evaluation_that_was_not_made_is_said():
    text = body(facts())
    assert "None was made." in text
    assert "Whether thinking helps was not measured." in text
    assert "nobody wrote or judged one" in text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.1, 0.2, "no difference"), (-0.3, -0.1, "worse"), (0.1, 0.3, "say nothing about others")],
)
def test_limits_say_whether_thinking_helped(low, high, said):
    evaluation = {"questions": 9, "accuracy_gain_low": low, "accuracy_gain_high": high}
    text = body(facts(evaluation=evaluation, collapse=2))
    assert said in text
    assert ("no difference" in text) == (low <= 0 <= high)
    assert "The run was collapsed when it ended" in text
    assert "| accuracy | – | – |" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_card(preset):
    text = body(facts(preset_name=preset, preset=find_preset(preset)))
    control = preset in ("sft", "sft-think", "rlvr")
    assert ("control" in text.split("## Use")[0]) == control
    assert f"`{preset}`" in text


def test_a_text_boundary_is_said_in_the_card_and_when_it_is_saved(tmp_path, capsys):
    made = trainer(tmp_path, boundary="text")
    made.save_model(str(tmp_path / "final"))
    text = (tmp_path / "final" / NAME).read_text("utf-8")
    assert "trace and answer as one text" in text
    assert "The answer is" in text
    assert "reasoning-parser" not in text
    assert "enable_thinking does nothing" in capsys.readouterr().err


def test_a_system_prompt_is_part_of_the_use():
    used = body(facts(settings={"system_prompt": "Be brief."})).split("## Training")[0]
    assert "send it as the first turn" in used
    assert "system_prompt" not in body(facts()).split("## Training")[0]


def test_functions_of_ones_own_are_named():
    text = body(facts(custom=["my_reward"]))
    assert "functions of the trainer's own" in text
    assert "my\\_reward" in text


# -- The base model --------------------------------------------------------------------------------


def readme(folder, front):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(f"---\n{front}\n---\ntext", encoding="utf-8")
    return str(folder)


def test_the_licence_is_the_bases_own(tmp_path):
    base = find_base(readme(tmp_path / "model", "license: mit\nbase_model: owner/first"))
    assert base == Base("model", None, "mit")
    other = readme(tmp_path / "b", "license: other\nlicense_name: own\nlicense_link: https://x.y")
    details = {"license_name": "own", "license_link": "https://x.y"}
    assert find_base(other) == Base("b", None, "other", details)
    write_card(tmp_path, facts(base=find_base(other)))
    data = ModelCard.load(tmp_path / NAME).data
    assert (data.license, data.license_name, data.license_link) == ("other", *details.values())


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
    assert find_base(readme(tmp_path / "model", front)).licence is None


def test_a_base_without_a_card_or_a_name_is_unknown(tmp_path, monkeypatch):
    assert find_base(str(tmp_path)).licence is None
    assert find_base(str(tmp_path / "gone")) == Base("gone")
    (tmp_path / NAME).write_bytes(b"\xff" * 9)
    assert find_base(str(tmp_path)).licence is None
    monkeypatch.chdir(readme(tmp_path / "here", "license: mit"))
    assert find_base("") == Base("")
    (tmp_path / "first" / "final").mkdir(parents=True)
    assert find_base(str(tmp_path / "first" / "final")).name == "first/final"


def test_a_hub_id_that_cannot_be_asked_is_kept(monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("native_reasoning.records.bases.hf_hub_download", no_network)
    assert find_base("owner/name") == Base("owner/name", "owner/name")


@pytest.mark.parametrize(("offline", "times"), [(False, 1), (True, 0)])
def test_the_hub_is_asked_once_after_the_cache_and_never_offline(offline, times, monkeypatch):
    asked = []

    def cached(*args, local_files_only=False, **kwargs):
        assert local_files_only, "a download that asks again and again"
        raise LocalEntryNotFoundError("not here")

    def no_network(url, timeout, **kwargs):
        asked.append(timeout)
        assert not kwargs.get("retry_on_errors")
        raise ConnectionError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("native_reasoning.records.bases.hf_hub_download", cached)
    monkeypatch.setattr("native_reasoning.records.bases.get_hf_file_metadata", no_network)
    assert find_base("owner/name") == Base("owner/name", "owner/name")
    assert len(asked) == times
    assert all(seconds <= 5 for seconds in asked)


def test_a_card_in_the_cache_is_read_without_asking_the_hub(tmp_path, monkeypatch):
    card = Path(readme(tmp_path / "cache", "license: mit"), NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("native_reasoning.records.bases.hf_hub_download", lambda *a, **k: str(card))
    monkeypatch.setattr("native_reasoning.records.bases.get_hf_file_metadata", None)
    assert find_base("owner/name").licence == "mit"


def test_a_model_trained_from_a_saved_one_keeps_base_and_licence(tmp_path):
    write_card(tmp_path, facts())
    assert find_base(str(tmp_path)) == Base(tmp_path.name, "owner/name", "apache-2.0")


# -- Harmless --------------------------------------------------------------------------------------


def test_names_and_settings_cannot_write_markdown_or_html():
    nasty = facts(
        name=NASTY,
        base=Base(NASTY, NASTY, None),
        settings={"system_prompt": NASTY + "\n```\n<script>alert(2)</script>\n````"},
        data=(NASTY, 1, 1, "0" * 64),
        custom=[NASTY],
        versions={"torch": NASTY},
    )
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body(nasty))
    assert "<img" not in page
    assert "<script" not in page
    assert 'href="javascript' not in page
    assert "\x1b" not in page
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == 5


def test_metadata_takes_no_base_that_is_no_name(tmp_path):
    write_card(tmp_path, facts(base=Base(NASTY, NASTY, None)))
    assert ModelCard.load(tmp_path / NAME).data.base_model is None


def test_escaped_text_reads_as_it_was():
    page = MarkdownIt().render(plain("a_b|<think> *x* #1 $y$"))
    assert page == "<p>a_b|&lt;think&gt; *x* #1 $y$</p>\n"


# -- Files -----------------------------------------------------------------------------------------


def test_a_card_of_somebodys_own_stays(tmp_path):
    write_card(tmp_path, facts())
    write_card(tmp_path, facts(steps=8))
    text = (tmp_path / NAME).read_text("utf-8")
    assert "| optimiser steps | 8 |" in text
    (tmp_path / NAME).write_text(text.replace(OURS, "mine"), encoding="utf-8")
    write_card(tmp_path, facts(steps=9))
    assert "mine" in (tmp_path / NAME).read_text("utf-8")


def test_a_card_that_was_written_anew_is_no_damage(tmp_path):
    write_card(tmp_path, facts())
    (tmp_path / "model.safetensors").write_bytes(b"x")
    seal(tmp_path)
    write_card(tmp_path, facts(steps=8))
    assert damage(tmp_path) == []
