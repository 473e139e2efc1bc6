"""What verl can give an objective, and what an objective asks of verl's configuration.

Nothing of verl is imported: the configuration is a function from a dotted key to its value.
"""

from collections.abc import Callable

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.papers import PRESETS
from native_reasoning.config.settings import ObjectiveSettings

#: Of our trainer, agent loop and losses, in verl's registries.
NAME = "native_reasoning"
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
LOSS_KEY = f"{ACTOR}.policy_loss.loss_mode"

Config = Callable[[str], object]


def missing(settings: ObjectiveSettings) -> str | None:
    """What these settings need and verl's rows do not hold, or None."""
    if settings.traces == "empty":
        return "it samples no trace, and verl's trainer only learns from what was sampled"
    if settings.samples_answers or settings.reward == "exact_match":
        return "it judges an answer that is sampled after the trace; here the reference follows it"
    if settings.needs_ema:
        return "it needs a lagging copy of the policy, and verl keeps none"
    if settings.repetition_penalty:
        return "it reads the text of the traces, and only their ids reach the trainer"
    if settings.advantages == "permuted":
        return "it draws from the run's seed and step, which a row does not know"
    if settings.filter != "none":
        return "its filter has a running mean that verl's checkpoints would lose"
    if settings.length_norm == "token_mean":
        return "it divides by the mean length of an update's traces, which a row does not know"
    plain = settings.policy_tokens == "trace_tag" and settings.length_norm == "token_sum"
    if settings.beta and not (plain and settings.bad_format != "mask"):
        return "its KL is not over all sampled tokens alike, and verl's is"
    return None


def supported() -> tuple[str, ...]:
    """The presets that can be trained inside verl."""
    return tuple(name for name, preset in PRESETS.items() if missing(preset.settings) is None)


def check_objective(name: str, settings: ObjectiveSettings) -> None:
    """Raises ConfigError where ``missing`` names something."""
    why = missing(settings)
    if why is not None:
        raise ConfigError(
            f"objective {name!r} cannot be trained inside verl",
            why=why,
            fix="train it with nrt train, or choose another: " + ", ".join(supported()),
        )


def loss_mode(name: str) -> str:
    """The name of an objective's loss in verl's registry."""
    return f"{NAME}/{name}"


def objective_name(config: Config) -> str:
    """The objective that ``LOSS_KEY`` names. Raises ConfigError if it names a loss of verl's."""
    mode = str(config(LOSS_KEY))
    if not mode.startswith(f"{NAME}/"):
        raise ConfigError(
            f"{LOSS_KEY} is {mode!r}",
            why=f"the trainer {NAME!r} writes weights of tokens that only its own losses read",
            fix=f"{LOSS_KEY}={loss_mode('nrt-ws')}",
        )
    return mode.removeprefix(f"{NAME}/")


#: For a setting of verl's: what it may be, the first proposed, and why.
Demands = dict[str, tuple[tuple[object, ...], str]]


def check_config(config: Config, settings: ObjectiveSettings) -> None:
    """Raises ConfigError for the first setting of verl's under which it would not be this
    objective that is trained."""
    given = config(f"{ROLLOUT}.n")
    n = max(given, 2) if isinstance(given, int) else 2
    critic = (False,) if config("algorithm.adv_estimator") == "gae" else _OFF
    demands: Demands = {
        f"{ROLLOUT}.n": ((9, n), "one of the n rows of a prompt is its empty trace"),
        **_DEMANDS,
        "critic.enable": (critic, "there is no value to learn"),
    }
    if settings.needs_frozen:
        demands |= _of_reference(config, settings.beta * n / (n - 1))
    for key, (allowed, why) in demands.items():
        if config(key) not in allowed:
            raise ConfigError(f"{key} is {config(key)!r}", why=why, fix=f"{key}={allowed[0]}")


_OFF = (False, None)
_CORRECTION = "algorithm.rollout_correction"
_DEMANDS: Demands = {
    f"{ROLLOUT}.agent.default_agent_loop": (
        (NAME,),
        "the answer has to be spliced in behind traces",
    ),
    f"{ROLLOUT}.temperature": (
        (1.0,),
        "verl scores a whole row at this temperature, and answers are scored at 1",
    ),
    f"{_CORRECTION}.bypass_mode": (
        _OFF,
        "rewards are read off the pass of the trainer's own weights, which it leaves out",
    ),
    f"{_CORRECTION}.rollout_is": ((None,), "it weighs tokens that were not sampled"),
    f"{_CORRECTION}.rollout_rs": ((None,), "it weighs tokens that were not sampled"),
    "algorithm.filter_groups.enable": (_OFF, "it filters before rewards are known"),
}


def _of_reference(config: Config, coefficient: float) -> Demands:
    """The first policy is verl's reference policy, and the KL term is verl's too."""
    given, wanted = config(f"{ACTOR}.kl_loss_coef"), float(f"{coefficient:.6g}")
    close = isinstance(given, int | float) and abs(given - coefficient) <= 1e-3 * coefficient
    return {
        f"{ACTOR}.use_kl_loss": (
            (True,),
            "the objective needs the first policy's log-probabilities",
        ),
        f"{ACTOR}.kl_loss_type": (("low_var_kl",), "it is the k3 estimate, as the objective's"),
        f"{ACTOR}.loss_agg_mode": (("seq-mean-token-sum",), "the KL term is a sum over tokens"),
        f"{ACTOR}.kl_loss_coef": (
            (wanted, given if close else wanted),
            "it is beta, times n/(n - 1) because verl divides by all n rows of a prompt",
        ),
    }
