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


def _require(config: Config, key: str, fits: bool, should: str, why: str) -> None:
    if not fits:
        raise ConfigError(f"{key} is {config(key)!r}", why=why, fix=f"{key}={should}")


def check_config(config: Config, settings: ObjectiveSettings) -> None:
    """Raises ConfigError for the first setting of verl's under which it would not be this
    objective that is trained."""

    def require(key: str, should: object, why: str) -> None:
        _require(config, key, config(key) == should, str(should), why)

    n = config(f"{ROLLOUT}.n")
    n = n if isinstance(n, int) else 0
    _require(
        config,
        f"{ROLLOUT}.n",
        n >= 2,
        "9",
        "one of the n rows of a prompt is its empty trace, the others are traces",
    )
    require(
        f"{ROLLOUT}.agent.default_agent_loop", NAME, "the answer has to be spliced in behind traces"
    )
    require(
        f"{ROLLOUT}.temperature",
        1.0,
        "verl scores a whole row at this temperature, and answers are scored at 1",
    )
    bypass = "algorithm.rollout_correction.bypass_mode"
    _require(
        config,
        bypass,
        not config(bypass),
        "False",
        "rewards are read off the pass of the trainer's own weights, which it leaves out",
    )
    for key in ("rollout_is", "rollout_rs"):
        key = f"algorithm.rollout_correction.{key}"
        require(key, None, "its weights would be laid on tokens that were not sampled")
    filtered = "algorithm.filter_groups.enable"
    _require(config, filtered, not config(filtered), "False", "it filters before rewards are known")
    critic = "critic.enable"
    gae = config(critic) is None and config("algorithm.adv_estimator") == "gae"
    _require(config, critic, not config(critic) and not gae, "False", "there is no value to learn")
    if settings.needs_frozen:
        _check_reference(config, settings, n)


def _check_reference(config: Config, settings: ObjectiveSettings, n: int) -> None:
    """The first policy is verl's reference policy, and the KL term is verl's too."""
    coefficient = settings.beta * n / (n - 1)
    wanted = {
        "use_kl_loss": (True, "the objective needs the first policy's log-probabilities"),
        "kl_loss_type": ("low_var_kl", "it is the k3 estimate, as the objective's"),
        "loss_agg_mode": ("seq-mean-token-sum", "the KL term is a sum over tokens"),
    }
    for key, (should, why) in wanted.items():
        key = f"{ACTOR}.{key}"
        _require(config, key, config(key) == should, str(should), why)
    key, given = f"{ACTOR}.kl_loss_coef", config(f"{ACTOR}.kl_loss_coef")
    close = isinstance(given, int | float) and abs(given - coefficient) <= 1e-3 * coefficient
    why = f"beta is {settings.beta}, times n/(n - 1) because verl divides by all n rows of a prompt"
    _require(config, key, close, f"{coefficient:.6g}", why)
