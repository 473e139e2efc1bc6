"""Help answers at once, has everything, and imports nothing heavy."""

import subprocess
import sys
from dataclasses import fields

import pytest

import native_reasoning
from cli_helpers import SOURCE
from native_reasoning.cli.flags import groups_of, help_text
from native_reasoning.cli.verbs import VERBS
from native_reasoning.config.settings import COMMON_ARGUMENTS, GROUPS, NRTOptions

HEAVY = {"torch", "transformers", "datasets", "numpy", "rich", "yaml", "pyarrow"}
#: What methods are is read from a YAML file (about 20 ms).
READ_BY_PRESETS = {"yaml"}


def _python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": SOURCE}, text=True, capture_output=True
    )


QUICK = [
    ["--help"],
    *([verb, "--help"] for verb in VERBS),
    ["presets"],
    ["presets", "verifree"],
    ["presets", "--json"],
]


@pytest.mark.parametrize("arguments", QUICK)
def test_help_and_presets_import_nothing_heavy(arguments):
    code = (
        "import sys; from native_reasoning.cli import main; "
        f"code = main({arguments!r}); print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: nrt") == ("--help" in arguments)
    allowed = set() if "--help" in arguments else READ_BY_PRESETS
    assert not (HEAVY - allowed) & set(done.stderr.split())


def test_import_of_the_package_is_light():
    done = _python("import sys, native_reasoning; print(*sys.modules)")
    assert not HEAVY & set(done.stdout.split())


def test_every_option_stands_in_exactly_one_group():
    assert [name for group in GROUPS.values() for name in group] == [
        f.name for f in fields(NRTOptions)
    ]
    assert len(GROUPS) == 7


def test_common_arguments_are_fields_of_the_config():
    from native_reasoning.config.nrt_config import NRTConfig

    assert set(COMMON_ARGUMENTS) <= {f.name for f in fields(NRTConfig)}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_each_verb_has_three_examples_whose_flags_exist(verb):
    assert len(verb.examples) == 3
    text = help_text(verb)
    flags = {flag.name for flags in groups_of(verb).values() for flag in flags}
    for example in verb.examples:
        assert example in text
        for word in example.split():
            known = {*flags, "--max-steps", "--prompt-column", "--answer-regex"}
            assert not word.startswith("--") or word in known


def test_help_lists_own_options_before_those_of_transformers(nrt):
    _, out, _ = nrt("train", "--help")
    assert out.index("--preset") < out.index("--boundary") < out.index("--learning-rate")
    assert "Every other field of transformers.TrainingArguments is accepted too" in out


def test_version(nrt):
    assert nrt("--version") == (0, f"nrt {native_reasoning.__version__}\n", "")


def test_public_door():
    for name in native_reasoning.__all__:
        assert getattr(native_reasoning, name) is not None
    assert set(native_reasoning.__all__) <= set(dir(native_reasoning))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = native_reasoning.nothing


def test_errors_of_the_door_are_all_errors():
    from native_reasoning.config import errors

    classes = {name for name, value in vars(errors).items() if name.endswith("Error")}
    assert classes <= set(native_reasoning.__all__)
