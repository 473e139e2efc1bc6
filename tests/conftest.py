"""What every test has: a cache of prepared rows of its own, and a short collection of garbage."""

import gc
import os

import datasets
import pytest

#: As the command has it where stderr is no terminal; tqdm reads it when it is imported.
os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("hf_home")
        patch.setenv("HF_HOME", str(home))  # for processes
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        yield


@pytest.fixture(autouse=True, scope="module")
def _modules_are_no_garbage():
    """Each run ends with a collection, which takes half a second to look through all of torch."""
    gc.collect()
    gc.freeze()
