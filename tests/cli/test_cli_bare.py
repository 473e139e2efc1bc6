"""A newcomer's mistakes where nothing is installed but what the package asks for."""

import os
import subprocess
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from cli_helpers import SOURCE
from doc_blocks import ROOT


def needed(name: str, extras: frozenset[str], found: dict[str, Distribution]) -> None:
    """Adds the distributions that ``name`` asks for at run time, whatever else is installed."""
    for text in distribution(name).requires or ():
        asked = Requirement(text)
        if asked.marker is None or any(asked.marker.evaluate({"extra": e}) for e in ("", *extras)):
            new = asked.name not in found or asked.extras
            found[asked.name] = distribution(asked.name)
            if new:
                needed(asked.name, frozenset(asked.extras), found)


def bare_environment(place: Path) -> Path:
    """The Python of an environment of links to the packages that are needed; the package itself is
    the one under test."""
    found: dict[str, Distribution] = {}
    needed("native-reasoning", frozenset(), found)
    venv.create(place, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    for package in found.values():
        for top in {file.parts[0] for file in package.files or () if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    (site / "native_reasoning.pth").write_text(SOURCE)
    return place / "bin" / "python"


def test_mistakes_are_told_without_the_packages_of_the_tests(tmp_path):
    python = bare_environment(tmp_path / "env")
    there = [python, "-c", "import accelerate, datasets, transformers; import pytest"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True}
    assert "No module named 'pytest'" in subprocess.run(there, **run).stderr
    done = subprocess.run([python, ROOT / ".ci" / "mistakes.py"], **run)
    assert done.returncode == 0, done.stdout + done.stderr
