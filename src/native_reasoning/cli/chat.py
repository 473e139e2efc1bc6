"""``nrt chat``: turns with a model, on a terminal or from a pipe."""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import exp
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import quiet_libraries, say, say_loading, show_json
from native_reasoning.config.errors import ConfigError, NativeReasoningError, printable

if TYPE_CHECKING:
    from native_reasoning.evaluation.conversation import Conversation, Reply

HELP = """\
/think      think before answering, or no longer
/fold       count the thinking instead of showing it, or no longer
/show       the thinking of the last turn, whole
/traces     N: think N times a turn, for comparison
/reference  TEXT: from now on, say how likely this answer is; without TEXT no longer
/new        forget the conversation
/quit       leave (so does Ctrl-D); Ctrl-C stops a reply"""


@dataclass
class Ways:
    """How turns are asked and shown; what is typed after a slash changes it."""

    think: bool = True
    traces: int = 1
    reference: str | None = None
    fold: bool = False
    json: bool = False
    last: "list[Reply]" = field(default_factory=list)


def run(parsed: Parsed) -> int:
    """Talks until there is nothing more to answer; returns the exit code."""
    own = parsed.own
    ways = Ways(
        think=not own["no_think"],
        traces=_traces(own),
        reference=own["reference"],
        fold=bool(own["fold"]),
        json=bool(own["json"]),
    )
    quiet_libraries()
    conversation = _load(parsed)
    if own["question"] is not None:
        _turn(conversation, own["question"], ways)
        return 0
    talk(conversation, ways)
    return 0


def _traces(own: dict[str, Any]) -> int:
    found = number(own, "traces")
    if found == 0:
        raise ConfigError("--traces is 0", why="nothing would be answered", fix="--no-think")
    return found or 1


def _load(parsed: Parsed) -> "Conversation":
    from native_reasoning.cli.inputs import asked_for, refused_by_libraries
    from native_reasoning.config.recipe import make_config
    from native_reasoning.evaluation.asked import load_asked
    from native_reasoning.evaluation.conversation import Conversation

    model, settings = asked_for(parsed)
    if parsed.own["seed"]:
        settings["seed"] = parsed.own["seed"]
    with TemporaryDirectory() as nowhere, refused_by_libraries():
        config = make_config({**settings, "num_generations": "2"}, output_dir=nowhere)
    say_loading(model)
    asked = load_asked(model, config, ("on",))
    assert asked.template is not None
    if asked.closes_by_text:
        say(
            "note: the model has no think tokens that it knows; what it writes before "
            f"{asked.template.boundary.close_text!r} counts as thinking"
        )
    return Conversation(asked.model, asked.template, config)


# -- Turns -----------------------------------------------------------------------------------------


def talk(conversation: "Conversation", ways: Ways) -> None:
    """A turn for each line of stdin; on a terminal, what begins with a slash is for us."""
    asks = sys.stdin.isatty()
    if asks:
        say("/help lists what can be typed; Ctrl-D leaves")
    for line in _lines(asks):
        if asks and line.startswith("/"):
            if line in ("/quit", "/exit"):
                return
            say(command(line, conversation, ways))
            continue
        try:
            _turn(conversation, line, ways)
        except KeyboardInterrupt:  # of a reply; the turn is as if it had not been
            if not asks:
                raise
            _write(sys.stderr, "\n", dim=False)
        except NativeReasoningError as error:
            if not asks:
                raise
            say(f"{error.what}: {error.fix}")


def _lines(asks: bool) -> Iterator[str]:
    """Lines that hold something."""
    if asks:
        # arrow keys and history at input's prompt
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
    while True:
        try:
            line = input("> " if asks else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def command(line: str, conversation: "Conversation", ways: Ways) -> str:
    """Does what stands after a slash; returns what to tell."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name == "think":
        ways.think = not ways.think
        return "thinking" if ways.think else "answering at once"
    if name == "fold":
        ways.fold = not ways.fold
        return "thinking is counted; /show shows it" if ways.fold else "thinking is shown"
    if name == "show":
        return "\n\n".join(r.reasoning or "(no thinking)" for r in ways.last) or "(no turn yet)"
    if name == "traces" and rest.isdecimal() and int(rest) > 0:
        ways.traces = int(rest)
        return f"{rest} a turn"
    if name == "reference":
        ways.reference = rest or None
        return f"reference: {rest}" if rest else "no reference"
    if name == "new":
        conversation.forget()
        return "a new conversation"
    return HELP


def _turn(conversation: "Conversation", question: str, ways: Ways) -> None:
    screen = None if ways.json or ways.traces > 1 else Live(ways.fold)
    ways.last = conversation.ask(
        question,
        think=ways.think,
        traces=ways.traces,
        reference=ways.reference,
        listen=screen and screen.hear,
    )
    if ways.json:
        show_json({"question": question, "replies": [asdict(r) for r in ways.last]})
        return
    for k, reply in enumerate(ways.last, start=1):
        if screen is not None:
            screen.end(reply)
        else:
            _write(sys.stderr, f"\n-- {k} of {ways.traces}: {_told(reply)}\n", dim=True)
            if not ways.fold and reply.reasoning:
                _write(sys.stderr, reply.reasoning + "\n", dim=True)
            _write(sys.stdout, reply.answer + "\n", dim=False)
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
    after = "" if logp is None else f"{exp(logp):.1%} a token after this, "
    unit = " a token" if logp is None else ""
    gained = "" if logp is None else f" ({logp - without:+.2f} nats)"
    told = f"reference: {after}{exp(without):.1%}{unit} after no thinking{gained}"
    return told.replace("%", " %")


def _told(reply: "Reply") -> str:
    if reply.reasoning is None:
        return "no thinking"
    return f"{reply.tokens} tokens of thinking" + ("" if reply.closed else ", not closed")


class Live:
    """A reply on the screen while it is written: thinking on stderr, dimmed or counted, then the
    answer on stdout."""

    def __init__(self, fold: bool) -> None:
        self.fold, self.heard, self.part = fold, 0, ""
        self.live = sys.stderr.isatty()

    def hear(self, part: str, text: str) -> None:
        """More text of a part."""
        if part == "answer":
            self._leave_thinking()
            text = text.lstrip() if self.part != part else text
            self.part = part if text else self.part
            _write(sys.stdout, text, dim=False)
            return
        self.part, self.heard = part, self.heard + 1
        if not self.fold:
            _write(sys.stderr, text, dim=True)
        elif self.live:
            _styled(sys.stderr, f"\r{self.heard} tokens of thinking", dim=True)

    def _leave_thinking(self) -> None:
        if self.part == "reasoning":
            if self.fold and not self.live:
                _write(sys.stderr, f"{self.heard} tokens of thinking", dim=True)
            _write(sys.stderr, "\n", dim=False)
            self.part = "answering"

    def end(self, reply: "Reply") -> None:
        """After the last text."""
        self._leave_thinking()
        _write(sys.stdout, "\n", dim=False)
        if reply.reasoning is not None and not reply.closed:
            _write(sys.stderr, "(the thinking was cut off: --max-trace-length)\n", dim=True)
        if not reply.ended:
            _write(sys.stderr, "(the answer was cut off: --max-answer-length)\n", dim=True)


def _write(stream: Any, text: str, dim: bool) -> None:
    """Text that the model may have written: it cannot command the terminal."""
    _styled(stream, printable(text), dim)


def _styled(stream: Any, text: str, dim: bool) -> None:
    styled = dim and text.strip() and stream.isatty() and os.environ.get("TERM") != "dumb"
    end = "\n" if text.endswith("\n") else ""
    stream.write(f"\x1b[2m{text.removesuffix(end)}\x1b[0m{end}" if styled else text)
    stream.flush()
