"""What every test has: a cache of prepared rows of its own, a short collection of garbage, neither
clock nor slow disk, and an end to the processes that it started, should it fail."""

import gc
import multiprocessing
import os
import subprocess
import weakref

import psutil
import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["browser", "cli_fixtures"]

# A slow machine is no failure. A hang is one, and pytest-timeout ends it (see the Makefile).
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

FAILED = pytest.StashKey[bool]()
STARTED: weakref.WeakSet[subprocess.Popen] = weakref.WeakSet()

#: As the command has it where stderr is no terminal; tqdm reads it when it is imported.
os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("hf_home")
        patch.setenv("HF_HOME", str(home))  # for processes
        patch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
        yield


@pytest.fixture(autouse=True, scope="session")
def _started_processes_are_known():
    make = subprocess.Popen.__init__

    def init(self, *args, **kwargs):
        STARTED.add(self)
        make(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", init)
        yield


@pytest.fixture(autouse=True, scope="session")
def _power_never_fails():
    """A checkpoint waits twenty times for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _modules_are_no_garbage():
    """Each run ends with a collection, which takes half a second to look through all of torch."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        if call.when == "setup":
            end_processes()
    return report


@pytest.fixture(autouse=True)
def _what_a_failed_test_started_ends(request):
    """So that the next test fails for its own sake; what a module started before it goes on."""
    STARTED.clear()
    yield
    if request.node.stash.get(FAILED, False):
        end_processes()


def end_processes() -> None:
    """Ends all processes that were started, with what they started, and closes their pipes."""
    for process in multiprocessing.active_children():
        process.kill()
    for process in list(STARTED):
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
