"""Code that a model wrote: what it cannot do."""

import os
import sys
import time

import pytest

from native_reasoning.errors import ConfigError
from native_reasoning.evaluate.suite import sandbox
from native_reasoning.evaluate.suite.answers import humaneval, popqa, popqa_target, program
from native_reasoning.evaluate.suite.sandbox import Isolation, isolation, passes

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


@pytest.fixture
def walls():
    if isolation() is not Isolation.FULL:
        pytest.skip("this machine gives no unprivileged user namespaces")


def test_a_program_passes_only_if_it_runs_to_its_end():
    assert passes("import math\nassert math.gcd(4, 6) == 2")
    for text in ("1 / 0", "def f(:", "import sys; sys.exit(0)", "import os; os._exit(0)"):
        assert not passes(text), text


@linux
@pytest.mark.parametrize("kind", Isolation)
@pytest.mark.parametrize(
    "text",
    [
        "import os; os.fork()",
        "import threading; threading.Thread(target=print).start()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "bytearray(800 << 20)",
        "open('a', 'w').write('x' * (17 << 20))",
        "import socket; socket.socket()",
        "import os; os.kill(os.getppid(), 0)",
        "import ctypes; assert ctypes.CDLL(None).umount(b'/proc') == 0",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))",
    ],
    ids=lambda text: text[:30] if isinstance(text, str) else None,
)
def test_what_is_refused(text, kind):
    if kind is Isolation.FULL and isolation() is not kind:
        pytest.skip("this machine gives no unprivileged user namespaces")
    assert not sandbox._run(text, kind, 3.0)


@linux
@pytest.mark.parametrize(
    "text",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os, time; os.setsid(); time.sleep(60)",
    ],
)
def test_an_endless_program_is_ended(text):
    began = time.monotonic()
    assert not passes(text, timeout=0.5)
    assert time.monotonic() - began < 15


def test_it_sees_no_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert passes("import os; assert 'HF_TOKEN' not in os.environ, os.environ")
    assert passes("import os; assert set(os.environ) <= {'LC_CTYPE'}")


@linux
def test_it_writes_nowhere_but_into_a_folder_that_is_gone_afterwards(tmp_path, walls):
    victim = tmp_path / "victim"
    victim.write_text("kept", encoding="utf-8")
    assert not passes(f"open({str(victim)!r}, 'w')")
    assert not passes(f"import os; os.unlink({str(victim)!r})")
    assert not passes(f"open({str(tmp_path / 'new')!r}, 'w')")
    assert not passes("for i in range(40): open(str(i), 'w').write('x' * (1 << 20))")
    assert passes("open('a', 'w').write('x'); import os; print(os.getcwd())")
    assert victim.read_text(encoding="utf-8") == "kept"
    assert os.listdir(tmp_path) == ["victim"]


@linux
def test_it_sees_no_other_process(walls):
    assert passes("import os; assert os.listdir('/proc') == [] and os.getpid() == 1")


def test_weaker_isolation_is_taken_where_the_stronger_does_not_work(monkeypatch):
    monkeypatch.setattr(sandbox, "_run", lambda text, kind, seconds: kind is Isolation.LIMITS)
    isolation.cache_clear()
    assert isolation() is Isolation.LIMITS
    monkeypatch.setattr(sandbox, "_run", lambda text, kind, seconds: False)
    isolation.cache_clear()
    with pytest.raises(ConfigError, match="harmless program"):
        isolation()
    isolation.cache_clear()


# -- metrics of our own tasks ----------------------------------------------------------------------

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
def test_pass_at_1(answer, right):
    assert humaneval(DOC, [answer]) == {"pass@1": right}
    assert program(DOC, answer).startswith(DOC["prompt"])


def test_popqa_counts_a_possible_answer_in_the_text():
    doc = {"possible_answers": '["journalist", "Journo"]'}
    for text, match in (("A Journalist.", 1.0), ("a journo", 1.0), ("a writer", 0.0)):
        assert popqa(doc, [text]) == {"match": match}
    assert popqa_target(doc) == "journalist"
    assert popqa({"possible_answers": ["x y"]}, ["it is X y"]) == {"match": 1.0}
