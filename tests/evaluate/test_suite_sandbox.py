"""Code that a model wrote: what it cannot do."""

import os
import sys

import pytest

from native_reasoning.config.errors import ConfigError
from native_reasoning.evaluation.suite import sandbox
from native_reasoning.evaluation.suite.answers import humaneval, popqa, popqa_target, program
from native_reasoning.evaluation.suite.sandbox import Isolation, isolation, passes

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


@pytest.fixture
def walls():
    if isolation() is not Isolation.FULL:
        pytest.skip("this machine gives no unprivileged user namespaces")


def test_a_program_passes_only_if_it_runs_to_its_end():
    assert passes("import math\nassert math.gcd(4, 6) == 2")
    for text in ("1 / 0", "def f(:", "import sys; sys.exit(0)", "import os; os._exit(0)"):
        assert not passes(text), text


#: What the filter refuses with EPERM, each harmless where it is not refused.
FILTERED = {
    "fork": "os.fork()",
    "exec": "os.execv('/bin/true', ['true'])",
    "another program": "subprocess.run(['true'])",
    "socket": "socket.socket()",
    "kill": "os.kill(os.getppid(), 0)",
    "sigqueue": "call('sigqueue', os.getpid(), 0, None)",
    "tgsigqueue": "call('syscall', TGSIGQUEUE, os.getpid(), os.getpid(), 0, SIGNAL)",
    "limits of a process": "resource.prlimit(os.getpid(), resource.RLIMIT_CPU)",
    "owner of a pipe": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getpid())",
    "another owner of a pipe": "fcntl.fcntl(os.pipe()[0], 15, struct.pack('ii', 1, os.getpid()))",
    "signal of a pipe": "fcntl.fcntl(os.pipe()[0], 10, 0)",
    "death signal": "call('prctl', 1, 0, 0, 0, 0)",
    "umount": "call('umount2', b'/proc', 0x100)",  # a wrong flag, which is known before the right
    "unshare": "call('unshare', 0x10000000)",
}
_EPERM = """
import ctypes, fcntl, os, resource, socket, struct, subprocess

TGSIGQUEUE = {"x86_64": 297, "aarch64": 240}[os.uname().machine]
SIGNAL = struct.pack("iii116x", 0, 0, -1)

def call(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)

try:
    WHAT
except OSError as error:
    assert error.errno == 1, error
else:
    raise SystemExit
"""
#: What other bounds refuse, and the error.
BOUNDED = {
    "thread": ("threading.Thread(target=print).start()", "RuntimeError"),
    "memory": ("bytearray(800 << 20)", "MemoryError"),
    "file": ("open('a', 'w').write('x' * (17 << 20))", "OSError"),
    "output": ("[os.write(3, bytes(1 << 20)) for _ in range(17)]", "OSError"),
    "limit": ("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError"),
}
_BOUND = "import os, resource, threading\ntry:\n    {}\nexcept {}: pass\nelse: raise SystemExit"
HARMLESS = """
import fcntl, os, random, resource, tempfile
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert resource.prlimit(0, resource.RLIMIT_CPU)[0] > 0
assert fcntl.fcntl(os.pipe()[0], fcntl.F_GETFL) >= 0
with open("a", "w") as file:
    file.write("x" * 1000)
assert len(os.urandom(4)) == 4
"""


def run(text, kind):
    if kind is Isolation.FULL and isolation() is not kind:
        pytest.skip("this machine gives no unprivileged user namespaces")
    return sandbox._run(text, kind, 3.0)


@linux
@pytest.mark.parametrize("kind", Isolation)
@pytest.mark.parametrize("name", FILTERED)
def test_what_the_filter_refuses(name, kind):
    assert run(_EPERM.replace("WHAT", FILTERED[name]), kind)


@linux
@pytest.mark.parametrize("name", FILTERED)
def test_it_is_the_filter_that_refuses(name, monkeypatch, tmp_path):
    text = sandbox._LAUNCHER.read_text(encoding="utf-8")
    without = tmp_path / "launcher.py"
    without.write_text(text.replace("        filtered(libc)\n", ""), encoding="utf-8")
    monkeypatch.setattr(sandbox, "_LAUNCHER", without)
    assert run(HARMLESS, Isolation.LIMITS)
    assert not run(_EPERM.replace("WHAT", FILTERED[name]), Isolation.LIMITS)


@linux
@pytest.mark.parametrize("kind", Isolation)
@pytest.mark.parametrize("name", BOUNDED)
def test_what_other_bounds_refuse(name, kind):
    text, error = BOUNDED[name]
    refused = _BOUND.format(text, error)
    if name == "output":  # which is where the token goes
        refused += "\nos.ftruncate(3, 0); os.lseek(3, 0, 0)"
    assert run(refused, kind)


@linux
@pytest.mark.parametrize("kind", Isolation)
def test_a_harmless_program_passes(kind):
    assert run(HARMLESS, kind)
    assert not run(HARMLESS + "raise ValueError", kind)


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
    assert not passes(text, timeout=0.5)


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
def test_it_opens_no_device(walls):
    text = "try: open('/dev/null')\nexcept PermissionError: pass\nelse: raise SystemExit"
    assert passes(text)


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
