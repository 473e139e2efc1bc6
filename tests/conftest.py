"""What every test has: a cache of prepared rows of its own."""

import datasets
import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("hf_home")
        patch.setenv("HF_HOME", str(home))  # for processes
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        yield
