"""``nrt chat``: turns with a model, on a terminal or from a pipe."""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from math import exp
from typing import Any, TextIO

from native_reasoning.cli.flags import Parsed
from native_reasoning.cli.inputs import asked_for
from native_reasoning.cli.output import quiet_libraries, say, say_loading, show_json
from native_reasoning.config.errors import NativeReasoningError, printable
from native_reasoning.evaluation.conversation import Conversation, Reply, load_asked


def run(parsed: Parsed) -> int:
    """Talks until there is nothing more to answer; returns the exit code."""
    quiet_libraries()
    own = parsed.own
    model, config = asked_for(parsed)
    say_loading(model)
    asked = load_asked(model, config, ("on",))
    assert asked.template is not None
    if asked.closes_by_text:
        say(
            "note: the model has no think tokens that it knows; what it writes before "
            f"{asked.template.boundary.close_text!r} counts as thinking"
        )
    conversation = Conversation(asked.model, asked.template, config)
    asks = own["question"] is None and sys.stdin.isatty()
    for question in _turns(asks) if own["question"] is None else [own["question"]]:
        try:
            _turn(conversation, question, own)
        except KeyboardInterrupt:  # of a reply; the turn is as if it had not been
            if not asks:
                raise
            _write(sys.stderr, "\n")
        except NativeReasoningError as error:
            if not asks:
                raise
            say(f"{error.what}: {error.fix}")
    return 0


def _turns(asks: bool) -> Iterator[str]:
    """Lines that hold something, until the end of the file; Ctrl-D on a terminal."""
    if asks:
        # arrow keys and history at input's prompt
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]

        say("/new forgets the conversation, Ctrl-C stops a reply, Ctrl-D leaves")
    while True:
        try:
            line = input("> " if asks else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _turn(conversation: Conversation, question: str, own: dict[str, Any]) -> None:
    if question == "/new":
        conversation.forget()
        return
    screen = None if own["json"] else Screen()
    reply = conversation.ask(
        question,
        think=not own["no_think"],
        reference=own["reference"],
        listen=screen and screen.hear,
    )
    if screen is None:
        show_json({"question": question, **asdict(reply)})
    else:
        screen.end(reply)


class Screen:
    """A reply while it is written: thinking dimmed on stderr, then the answer on stdout."""

    def __init__(self) -> None:
        self.thinks = self.answers = False

    def hear(self, part: str, text: str) -> None:
        """More text of a part."""
        if part == "reasoning":
            self.thinks = True
            _write(sys.stderr, text, dim=True)
            return
        self._leave_thinking()
        text = text if self.answers else text.lstrip()
        self.answers = self.answers or bool(text)
        _write(sys.stdout, text)

    def _leave_thinking(self) -> None:
        if self.thinks:
            _write(sys.stderr, "\n")
        self.thinks = False

    def end(self, reply: Reply) -> None:
        """After the last text."""
        self._leave_thinking()
        _write(sys.stdout, "\n")
        if not reply.closed:
            _write(sys.stderr, "(the thinking was cut off: --max-trace-length)\n", dim=True)
        if not reply.ended:
            _write(sys.stderr, "(the answer was cut off: --max-answer-length)\n", dim=True)
        if reply.logp is not None and reply.logp_no_think is not None:
            thought = None if reply.reasoning is None else reply.logp
            _write(sys.stderr, likely(thought, reply.logp_no_think) + "\n", dim=True)


def likely(logp: float | None, without: float) -> str:
    """How likely the reference is, after a trace where there is one.

    >>> likely(-0.105, -2.303)
    'reference: 90.0 % a token after this, 10.0 % after no thinking (+2.20 nats)'
    >>> likely(None, -2.303)
    'reference: 10.0 % a token after no thinking'
    """
    if logp is None:
        return f"reference: {100 * exp(without):.1f} % a token after no thinking"
    after, before = 100 * exp(logp), 100 * exp(without)
    gained = f"({logp - without:+.2f} nats)"
    return f"reference: {after:.1f} % a token after this, {before:.1f} % after no thinking {gained}"


def _write(stream: TextIO, text: str, dim: bool = False) -> None:
    """Text that the model may have written: it cannot command the terminal."""
    text = printable(text)
    end = "\n" if text.endswith("\n") else ""
    if dim and text.strip() and stream.isatty() and os.environ.get("TERM") != "dumb":
        text = f"\x1b[2m{text.removesuffix(end)}\x1b[0m{end}"
    stream.write(text)
    stream.flush()
