"""The plugin for verl 0.9: everything here touches verl, and nothing here is mathematics.

verl imports this file through the entry point group ``verl.plugins`` in each of its processes, and
it puts three things under the name ``native_reasoning`` into verl's registries: an agent loop
(agent_loop.py) that splices the reference answer in behind each trace, a trainer that reads rewards
off the pass which computes the old log-probabilities, and a loss for each objective. docs/verl.md
says how to use it, spliced.py what is computed.

The trainer is verl's synchronous one with a single method replaced: an estimator from verl's own
registry of them is not given ``old_log_probs``, so that no reward could be read there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from native_reasoning.config.errors import ConfigError
from native_reasoning.integrations.demands import (
    NAME,
    check_config,
    check_objective,
    loss_mode,
    objective_name,
    supported,
)
from native_reasoning.integrations.spliced import Layout, SplicedRows, credit, spliced_loss
from native_reasoning.objective.credit import Objective, preset_objective
from native_reasoning.scoring.scorer import rounding_of

try:
    import transfer_queue as tq  # type: ignore[import-not-found]
    from omegaconf import OmegaConf, open_dict  # type: ignore[import-not-found]
    from tensordict import TensorDict  # type: ignore[import-not-found]
    from verl.trainer.ppo import core_algos  # type: ignore[import-not-found]
    from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer  # type: ignore[import-not-found]

    from native_reasoning.integrations.agent_loop import SplicedAgentLoop
except ImportError as error:
    raise ConfigError(
        f"verl cannot be imported: {error}",
        why="native_reasoning.integrations.verl is a plugin for verl 0.9 and its TransferQueue",
        fix="install verl 0.9.1 as docs/verl.md says, or train with nrt train",
    ) from error

__all__ = ["OBJECTIVES", "SplicedAgentLoop", "SplicedTrainer", "register_objective"]

#: What can be trained: the presets that verl can carry, and what ``register_objective`` adds.
OBJECTIVES: dict[str, Objective] = {}


# -- The loss --------------------------------------------------------------------------------------


def register_objective(name: str, objective: Objective) -> None:
    """Makes an objective trainable as ``policy_loss.loss_mode=native_reasoning/NAME``.

    Call it in a module that verl imports in every process (``VERL_USE_EXTERNAL_MODULES``). Raises
    ConfigError where verl lacks what the objective needs.
    """
    check_objective(name, objective)
    OBJECTIVES[name] = objective
    core_algos.register_policy_loss(loss_mode(name))(policy_loss(objective))


def policy_loss(objective: Objective) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """The loss of one objective, as verl calls it."""

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "seq-mean-token-sum",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a micro-batch; ``advantages`` (R, W) are the weights of ``credit``.

        A sum over tokens divided by the number of traces of an update, whatever ``loss_agg_mode``:
        verl's mean is over all n rows of a prompt, of which one is its empty trace.
        """
        assert rollout_is_weights is None  # check_config
        sampled = response_mask.bool()
        of_tokens = spliced_loss(log_prob, old_log_prob, advantages, sampled, objective)
        mean = core_algos.agg_loss(
            loss_mat=of_tokens,
            loss_mask=torch.ones_like(of_tokens),
            loss_agg_mode="seq-mean-token-sum",
            **config.global_batch_info,
        )
        drift = torch.where(sampled, old_log_prob - log_prob.detach(), 0)
        metrics = {"actor/ppo_kl": float(drift.sum() / sampled.sum().clamp(min=1))}
        return mean * (config.rollout_n / (config.rollout_n - 1)), metrics

    return loss


# -- The trainer -----------------------------------------------------------------------------------


# verl is not installed where types are checked
@register_trainer(NAME)  # pyright: ignore[reportUntypedClassDecorator]
class SplicedTrainer(PPOTrainerSync):  # pyright: ignore[reportUntypedBaseClass]
    """verl's synchronous trainer, whose rewards come from the pass of the old log-probabilities."""

    def __init__(self, config: Any) -> None:
        def value(key: str) -> Any:
            return OmegaConf.select(config, key)

        name = objective_name(value)
        if name not in OBJECTIVES:
            check_objective(name, preset_objective(name))  # says what is wrong with a preset
        self.objective = OBJECTIVES[name]
        check_config(value, self.objective)
        dtype = str(value("actor_rollout_ref.actor.fsdp_config.dtype") or "bfloat16")
        self.rounding = rounding_of(getattr(torch, dtype))
        with open_dict(config):  # verl asks for this name where it means "synchronous"
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Writes the weights of tokens as ``advantages``, and rewards as ``rm_scores``."""
        fields = ["uid", "old_log_probs", "extra_fields"]
        fields += ["ref_log_prob"] * self.objective.needs_frozen
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=fields
        )
        given = credit(rows_of(data, batch.tags), self.objective, self.rounding)
        metrics |= {f"{NAME}/{name}": value for name, value in given.metrics.items()}
        lengths = [int(tag["response_len"]) for tag in batch.tags]
        scores = torch.zeros_like(given.weights)
        scores[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = given.rewards
        written = {"advantages": given.weights, "returns": given.weights, "rm_scores": scores}
        return tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(
                {name: _ragged(tensor, lengths) for name, tensor in written.items()},
                batch_size=len(lengths),
            ),
        )


def rows_of(data: Any, tags: list[dict[str, Any]]) -> SplicedRows:
    """A batch of verl's, with its tags, as rows; rows that fill it up have no layout."""
    about, names = data.pop("extra_fields").tolist(), data.pop("uid").tolist()
    layouts = [
        None if tag.get("is_padding", False) else Layout(**fields[NAME])
        for tag, fields in zip(tags, about, strict=True)
    ]
    reference = _padded(data["ref_log_prob"]) if "ref_log_prob" in data else None
    return SplicedRows(_padded(data["old_log_probs"]), layouts, names, reference)


def _padded(tensor: Tensor) -> Tensor:
    return (tensor.to_padded_tensor(0.0) if tensor.is_nested else tensor).float()


def _ragged(tensor: Tensor, lengths: list[int]) -> Tensor:
    rows = [row[:length] for row, length in zip(tensor, lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


for _name in supported():
    register_objective(_name, preset_objective(_name))
