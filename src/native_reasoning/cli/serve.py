"""``nrt serve``: the command of an existing server for a saved model, run in our place."""

import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import say, show
from native_reasoning.config.errors import ConfigError, RunError


def run(parsed: Parsed) -> int:
    """Replaces this process by the server's; returns the exit code where it only says how."""
    from native_reasoning.cli.inputs import model_folder
    from native_reasoning.model.adapters import base_of
    from native_reasoning.model.folders import check_folder

    assert parsed.positional is not None
    model, _ = model_folder(parsed.positional)
    check_folder(model)
    if base_of(Path(model)) is not None:
        raise RunError(
            f"{model} is an adapter",
            why="a server needs the whole model, new think tokens included",
            fix="let the run finish: final/ is merged",
        )
    words = command(model, parsed.own)
    if parsed.own["dry_run"]:
        show(shlex.join(words))
        return 0
    _require(parsed.own)
    say(shlex.join(words))
    sys.stderr.flush()
    os.execv(words[0], words)
    raise AssertionError("execv does not return")


def command(model: str, own: dict[str, Any]) -> list[str]:
    """The server's command line. Thinking apart from the answer is what the saved folder tells
    transformers, and what a parser does for vLLM."""
    host, port = own["host"] or "127.0.0.1", str(number(own, "port") or 8000)
    listen = ["--host", host, "--port", port]
    if own["vllm"]:
        server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        return [*server, "--reasoning-parser", "deepseek_r1", *listen]
    return [sys.executable, "-m", "transformers.cli.transformers", "serve", model, *listen]


def _require(own: dict[str, Any]) -> None:
    """Raises ConfigError where the server is not installed."""
    needed = ("vllm",) if own["vllm"] else ("fastapi", "uvicorn", "openai")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not installed",
            why="the server is not ours",
            fix="pip install vllm" if own["vllm"] else "pip install 'transformers[serving]'",
        )
