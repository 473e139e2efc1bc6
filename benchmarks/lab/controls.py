"""An objective that is watched while it trains, and the controls that no preset has."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.objective.types import Scores, Signal

#: What the oracle is: A from the probability of the hard tokens alone, nothing clipped.
_ORACLE = preset_objective("nrt-am-released")


@dataclass(frozen=True)
class Watched(Objective):
    """Settings that note, at every step, how probable the hard tokens are.

    ``hard`` are their places in the answer; ``control`` is a name of ``CONTROLS`` or empty. The
    whole step has to be one micro-batch.
    """

    hard: tuple[int, ...] = ()
    control: str = ""
    #: For each step the mean probability of a hard token after a trace, and after none.
    seen: list[tuple[float, float]] = field(default_factory=list, compare=False)

    def of_groups(self, scores: Sequence[Scores]) -> list[Signal]:
        """The signals of the step's groups, after what the control does to them.

        The questions are new to the policy (each is trained on once), so the first mean is the
        accuracy on unseen questions with sampled traces, but for the answer's easy words, which
        are given.
        """
        places = list(self.hard)
        with_trace = torch.stack([s.answer[:, places].detach().exp().mean() for s in scores])
        without = torch.stack([s.baseline[places].detach().exp().mean() for s in scores])
        self.seen.append((with_trace.mean().item(), without.mean().item()))
        signals = super().of_groups(scores)
        if not self.control:
            return signals
        advantages = CONTROLS[self.control](self, scores, signals)
        pairs = zip(signals, advantages, strict=True)
        return [replace(signal, advantages=a) for signal, a in pairs]


def watched(settings: ObjectiveSettings, hard: tuple[int, ...], control: str = "") -> Watched:
    """The same settings, watched."""
    return Watched(**asdict(settings), hard=hard, control=control)


def shuffled(own: Watched, scores: Sequence[Scores], signals: Sequence[Signal]) -> list[Tensor]:
    """The advantages of a group dealt out anew: nothing that a trace did earns them."""
    random = torch.Generator().manual_seed(len(own.seen))
    order = [torch.randperm(len(s.advantages), generator=random) for s in signals]
    return [s.advantages[i.to(s.advantages.device)] for s, i in zip(signals, order, strict=True)]


def oracle(own: Watched, scores: Sequence[Scores], signals: Sequence[Signal]) -> list[Tensor]:
    """Advantages of the mean probability of the hard tokens: a reward that knows which they are."""
    places = list(own.hard)
    cut = [replace(s, answer=s.answer[:, places], baseline=s.baseline[places]) for s in scores]
    return [signal.advantages for signal in _ORACLE.of_groups(cut)]


def equal_rms(own: Watched, scores: Sequence[Scores], signals: Sequence[Signal]) -> list[Tensor]:
    """Advantages without std scaling, times one number a step: their root mean square over the step
    is what it is with std scaling. What is lost is only that groups weigh alike."""
    settings: dict[str, Any] = {f.name: getattr(own, f.name) for f in fields(Objective)}
    settings["scale"] = "std"
    scaled = Objective(**settings).of_groups(scores)
    wanted, found = (
        torch.cat([s.advantages for s in given]).square().mean().sqrt()
        for given in (scaled, signals)
    )
    factor = wanted / found if found > 0 else torch.zeros_like(wanted)
    return [s.advantages * factor for s in signals]


Control = Callable[[Watched, Sequence[Scores], Sequence[Signal]], list[Tensor]]
CONTROLS: dict[str, Control] = {"shuffled": shuffled, "oracle": oracle, "equal_rms": equal_rms}
