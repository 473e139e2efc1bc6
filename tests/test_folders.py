"""Names of models that are folders, and are not there or hold none."""

import pytest

from native_reasoning.config.errors import PolicyError
from native_reasoning.model.folders import check_folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first", "runs/second", "empty", "model"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/first/config.yaml", "runs/second/config.yaml", "model/config.json"):
        (tmp_path / name).touch()
    return tmp_path


def test_models_and_hub_ids_pass(here):
    check_folder("model")
    check_folder(str(here / "model"))
    check_folder("Qwen/Qwen3-0.6B-Base")
    check_folder("gpt2")
    (here / "empty" / "adapter_config.json").touch()
    check_folder("empty")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("runs/frist", "does not exist .did you mean 'first'"),
        ("./nowhere", "does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("empty", "holds no model$"),
        ("runs", "holds no model$"),
    ],
)
def test_other_folders_are_named(here, name, told):
    with pytest.raises(PolicyError) as caught:
        check_folder(name)
    assert caught.match("(?m)" + told)
