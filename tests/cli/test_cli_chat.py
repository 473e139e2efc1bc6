"""nrt chat: what goes where, and a real terminal."""

import json
import os
import pty
import re
import sys

from cli_helpers import SOURCE
from native_reasoning.cli.chat import likely
from native_reasoning.demo import base_path

BASE = str(base_path())
ASK = ("--max-trace-length", "30", "--max-answer-length", "30", "--use-cpu")


def test_the_answer_goes_to_stdout_and_the_thinking_to_stderr(nrt):
    code, out, err = nrt("chat", BASE, "--question", "tell 1 2 3 4 5", *ASK)
    assert code == 0
    assert re.fullmatch(r"(dear|hello) friend .*\n", out)
    assert len(err.splitlines()[-1].split()) > 2
    assert "\x1b" not in out + err


def test_a_reference_and_json(nrt):
    asked = ("--question", "tell 1 2 3 4 5", "--reference", "dear friend")
    code, out, err = nrt("chat", BASE, *asked, *ASK)
    assert code == 0
    assert len(re.findall(r"reference: [\d.]+ % a token after this, ", err)) == 1
    (line,) = nrt("chat", BASE, *asked, "--json", *ASK)[1].splitlines()
    found = json.loads(line)
    assert found["answer"] == out.strip()
    assert found["logp"] < 0


def test_0_is_a_seed_too(nrt):
    asked = ("--question", "tell 1 2 3 4 5", "--json", *ASK)
    seeds = ((), ("--seed", "42"), ("--seed", "0"))
    plain, same, other = (nrt("chat", BASE, *asked, *seed)[1] for seed in seeds)
    assert plain == same != other


def test_lines_of_a_pipe_are_turns(nrt, monkeypatch):
    lines = iter(["tell 1 2 3", "", "tell 4 5 6"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or _end(lines))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, out, _ = nrt("chat", BASE, "--no-think", "--json", *ASK)
    assert code == 0
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["question"], second["question"]) == ("tell 1 2 3", "tell 4 5 6")
    assert first["reasoning"] is None


def _end(lines):
    for line in lines:
        if line:
            return line
    raise EOFError


def test_how_likely_a_reference_is():
    assert likely(-0.105, -2.303).startswith("reference: 90.0 % a token after this, 10.0 %")
    assert likely(None, -2.303) == "reference: 10.0 % a token after no thinking"


def test_on_a_terminal_thinking_is_dimmed_and_a_conversation_can_begin_anew():
    """A process of its own on a pseudo-terminal."""
    child, screen = pty.fork()
    if child == 0:
        os.environ |= {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-m", "native_reasoning.cli", "chat", BASE, *ASK])
    try:
        read_until(screen, "> ")
        os.write(screen, b"tell 1 2 3 4 5\n")
        shown = read_until(screen, "\n> ")
        assert re.search(r"\x1b\[2m ?\w+\x1b\[0m", shown)
        assert re.search(r"\n(dear|hello) friend .*\r\n", shown)
        os.write(screen, b"/new\n")
        assert read_until(screen, "> ").count("\n") == 1
        os.write(screen, b"tell 1 2 3 4 5\n")
        assert read_until(screen, "\n> ").split("\n")[1:] == shown.split("\n")[1:]
        os.write(screen, b"\x04")
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(screen)


def read_until(screen: int, mark: str) -> str:
    """What the terminal shows up to a prompt."""
    shown = ""
    while not shown.endswith(mark):
        shown += os.read(screen, 4096).decode()
    return shown
