"""Code that a model wrote: what it cannot do."""

import os
import shutil

import pytest

from native_reasoning.config.errors import ConfigError
from native_reasoning.evaluation.marks import humaneval, passes, program, walls

HARMLESS = (
    "import os, random\nassert len(os.urandom(4)) == 4\nassert not os.environ.get('HF_TOKEN')"
)


@pytest.fixture
def bubblewrap():
    """Skips where the machine has none."""
    walls.cache_clear()
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    assert walls()[0].endswith("bwrap")
    yield
    walls.cache_clear()


@pytest.fixture
def container(monkeypatch):
    """A machine without bubblewrap, which the user says may be lost."""
    walls.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert walls() == ()
    yield
    walls.cache_clear()


@pytest.fixture(params=["bubblewrap", "container"])
def either(request):
    request.getfixturevalue(request.param)


@pytest.mark.parametrize("works", [True, False])
def test_without_a_sandbox_nothing_is_run(monkeypatch, works):
    walls.cache_clear()
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None if works else "/bin/false")
    with pytest.raises(ConfigError, match="bubblewrap") as refused:
        passes("pass")
    assert "apt install bubblewrap" in refused.value.fix
    assert "HF_ALLOW_CODE_EVAL=1" in refused.value.fix


def test_a_program_passes_only_if_it_runs_to_its_end(either, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert passes(HARMLESS)
    failing = ("1 / 0", "def f(:", "import sys; sys.exit(0)", "import os; os._exit(0)", "\ud800")
    for text in failing:
        assert not passes(text), text


BOUNDED = {
    "memory": ("bytearray(800 << 20)", "MemoryError"),
    "file": ("open('/tmp/nrt_too_large', 'w').write('x' * 100_000)", "OSError"),
    "limit": (
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "(ValueError, OSError)",
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds(name, either):
    text, error = BOUNDED[name]
    if name == "limit" and os.getuid() == 0 and walls() == ():
        pytest.skip("root may lift its limits")
    bound = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ntry:\n    {}\n"
    bound += "except {}: pass\nelse: raise SystemExit"
    assert passes(bound.format(text, error))


@pytest.mark.parametrize("text", ["while True: pass", "import time; time.sleep(60)"])
def test_an_endless_program_is_ended(text, either):
    assert not passes(text, timeout=1.0)


def test_what_bubblewrap_holds_off(bubblewrap, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept", encoding="utf-8")
    for text in (
        f"open({str(victim)!r})",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        "open('/new', 'w')",
        "import os; os.kill(1, 9)",
        f"import os; os.kill({os.getpid()}, 0)",
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
        "import os; os.listdir('/home')",
    ):
        caught = f"try:\n    {text}\nexcept OSError: pass\nelse: raise SystemExit"
        assert passes(caught) == (text != "import os; os.kill(1, 9)"), text
    assert passes("import os; assert os.getpid() <= 3, os.getpid()")
    assert victim.read_text(encoding="utf-8") == "kept"
    assert os.listdir(tmp_path) == ["victim"]


DOC = {
    "prompt": "import math\n\ndef half(x):\n    '''Half.'''\n",
    "entry_point": "half",
    "test": "def check(f):\n    assert f(4) == 2\n",
}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return x / 2\n", 1.0),
        ("    return x\n", 0.0),
        ("", 0.0),
        ("```python\ndef half(x):\n    return math.floor(x / 2)\n```\nThat is it.", 1.0),
        ("Here:\n```\n    return x / 2\n```", 1.0),
        ("    return x / 2\n```", 0.0),
    ],
)
def test_pass_at_1(answer, right, container):
    assert humaneval(DOC, [answer]) == {"pass@1": right}
    assert program(DOC, answer).startswith(DOC["prompt"])
