"""What a trainer's card is made of, and the way of a saved model to the hub."""

import shutil
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from huggingface_hub import ModelCard, metadata_load

import native_reasoning.training.publishing as publishing
from native_reasoning.records.bases import NAME, OURS
from native_reasoning.records.card import body
from test_card import trainer
from tiny import QA

ROOT = Path(__file__).parents[1]
TOKEN = "tok-" + "5ecret" * 3  # known by its setting alone: it does not look like one


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trainer that has taken no step."""
    return trainer(tmp_path_factory.mktemp("made"), hub_token=TOKEN)


@pytest.fixture
def args(made):
    """Its settings, which come back after the test."""
    before = dict(vars(made.args))
    yield made.args
    vars(made.args).clear()
    vars(made.args).update(before)


# -- Settings and data -----------------------------------------------------------------------------


def test_no_setting_tells_a_place(made, args, monkeypatch):
    monkeypatch.chdir(ROOT)
    args.chat_template_path = "/home/alice/chat.jinja"
    args.resume_from_checkpoint = "runs/alice/checkpoint-3"
    args.deepspeed = {"nvme_path": "/home/alice/nvme"}
    args.fsdp_config = {"offload": "/home/alice/off"}
    args.model_init_kwargs = {"cache_dir": "/home/alice/c", "offload_folder": "~/alice s/d"}
    args.optim_args = "state=/home/alice/state.pt, rank=2"
    args.lora_target_modules = ["C:\\alice\\x.txt", "../../alice/q_proj", "src/native_reasoning"]
    args.system_prompt = "/no_think"
    told = made._settings()
    assert "alice" not in str(told)
    left_out = {"chat_template_path", "resume_from_checkpoint", "deepspeed", "fsdp_config"}
    assert not left_out & set(told)
    assert told["model_init_kwargs"] == {"cache_dir": "c", "offload_folder": "d"}
    assert told["optim_args"] == "state=state.pt, rank=2"
    assert told["lora_target_modules"] == ["x.txt", "q_proj", "native_reasoning"]
    assert told["system_prompt"] == "/no_think"


def test_a_token_is_known_wherever_a_setting_repeats_it(made, args):
    args.system_prompt = f"The key is {TOKEN}."
    told = made._settings()
    assert told["system_prompt"] == "The key is <secret>."
    assert TOKEN not in str(told)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("~/clinic/patients/qa.jsonl", "qa.jsonl"),
        ("../../alice/qa.jsonl", "qa.jsonl"),
        ("/home/alice/qa", "qa"),
        ("alice/qa.jsonl", "qa.jsonl"),
        ("tests/data", "data"),
        ("owner/name", "owner/name"),
        ("owner/name:main", "owner/name:main"),
        ("owner/name:main [train]", "owner/name:main [train]"),
        ("the list of rows", "the list of rows"),
    ],
)
def test_data_are_told_by_their_last_name_or_by_their_hub_id(name, told, made, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(made, "train_report", replace(made.train_report, source=name))
    made.__dict__.pop("_data", None)
    assert made._data[0] == told


# -- Evaluations -----------------------------------------------------------------------------------


def test_an_evaluation_of_other_data_is_not_the_runs_own(tmp_path):
    made = trainer(tmp_path)
    made.train()
    made.evaluate(QA[:2])
    assert made._measured()[0] is None
    made.evaluate()
    made.evaluate(QA[:2])
    assert made._measured()[0]["questions"] == 4
    assert "4 held-out questions at step 1" in body(made._facts())


# -- A card that fails -----------------------------------------------------------------------------


def test_a_card_that_fails_does_not_take_the_model_with_it(made, monkeypatch, capsys):
    def broken(*args):
        raise ValueError("no card today")

    monkeypatch.setattr(publishing, "write_card", broken)
    made.save_whole_model(made.folder / "final")
    held = {path.name for path in (made.folder / "final").iterdir()}
    assert "model.safetensors" in held
    assert NAME not in held
    assert "ValueError: no card today" in capsys.readouterr().err
    shutil.rmtree(made.folder / "final")


# -- The hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository: what it was asked, and ``sent``, the files that it was given."""
    asked = {"card": None}

    def create(name, **kwargs):
        asked.update(name=name, **kwargs)
        return type("Made", (), {"repo_id": f"me/{name}"})()

    def upload(folder_path, ignore_patterns, run_as_future, **kwargs):
        asked.update(kwargs, folder=folder_path)
        ignored = shutil.ignore_patterns(*ignore_patterns or ())
        if not run_as_future:
            shutil.copytree(folder_path, tmp_path / "sent", ignore=ignored)
            return "https://example.org"
        asked["future"] = Future()
        return asked["future"]

    def download(*args, **kwargs):
        (tmp_path / "there.md").write_text(asked["card"], encoding="utf-8")
        return str(tmp_path / "there.md")

    monkeypatch.setattr(publishing, "create_repo", create)
    monkeypatch.setattr(publishing, "upload_folder", upload)
    monkeypatch.setattr(publishing, "file_exists", lambda *a, **k: asked["card"] is not None)
    monkeypatch.setattr(publishing, "hf_hub_download", download)
    return asked, tmp_path / "sent"


def test_the_hub_gets_the_model_and_nothing_of_the_run(made, hub, tmp_path):
    asked, sent = hub
    made.save_model(str(tmp_path / "final"))
    assert made.push_to_hub(private=True) == "https://example.org"
    assert (asked["repo_id"], asked["private"]) == ("me/run", True)
    assert asked["token"] == TOKEN
    names = {path.name for path in sent.iterdir()}
    assert {NAME, "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert names == {path.name for path in (tmp_path / "final").iterdir()}
    assert ModelCard.load(sent / NAME).text == ModelCard.load(tmp_path / "final" / NAME).text
    assert not asked["folder"].exists()


def test_licence_and_tags_go_to_the_head_of_the_card(made, hub):
    made.push_to_hub(license="mit", tags="sums")
    head = metadata_load(hub[1] / NAME)
    assert (head["license"], head["library_name"]) == ("mit", "transformers")
    assert {"sums", "reasoning"} <= set(head["tags"])


@pytest.mark.parametrize(("there", "goes"), [(None, True), (f"{OURS} x", True), ("mine", False)])
def test_a_new_card_does_not_replace_an_edited_one_of_the_hub(there, goes, made, hub):
    hub[0]["card"] = there
    made.push_to_hub()
    assert (hub[1] / NAME).exists() == goes
    assert (hub[1] / "model.safetensors").exists()


def test_an_edited_card_of_the_saved_model_is_what_the_hub_gets(made, hub):
    card = made.folder / "final" / NAME
    card.parent.mkdir()
    card.write_text("my own words", encoding="utf-8")
    try:
        hub[0]["card"] = "my own words of before"
        made.push_to_hub()
    finally:
        shutil.rmtree(card.parent)
    assert (hub[1] / NAME).read_text("utf-8") == "my own words"


def test_what_is_still_being_sent_is_there_until_it_is(made, hub):
    future = made.push_to_hub(blocking=False)
    folder = hub[0]["folder"]
    assert (folder / "model.safetensors").exists()
    sender = threading.Thread(target=future.set_result, args=("https://example.org",))
    sender.start()
    sender.join()
    assert not folder.exists()


# -- The source distribution -----------------------------------------------------------------------


def test_the_sdist_has_no_tests_that_would_miss_their_files():
    held = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {"README.md", "LICENSE", "src/native_reasoning/records/card.py"} <= held
    assert not [path for path in held if path.startswith("tests/")]
    assert sum((ROOT / path).stat().st_size for path in held) < 6_000_000
