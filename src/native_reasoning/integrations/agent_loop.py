"""verl's agent loop of NRT: sample a trace, splice the reference answer in behind it.

Imported by verl.py, where what fails is told.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop import agent_loop  # type: ignore[import-not-found]

from native_reasoning.config.errors import DataError, RunError, TemplateError
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.template import Template, make_template
from native_reasoning.integrations.demands import NAME
from native_reasoning.integrations.spliced import Spliced, cut, splice, splice_nothing


@cache
def template_of(tokenizer: Any, boundary: str, boundary_text: str) -> Template:
    """The template of a tokenizer, which is left as it is. Raises TemplateError where think tokens
    would have to be added: the model that verl has loaded could not know them."""
    own = copy.deepcopy(tokenizer)
    made = make_template(own, boundary=boundary, boundary_text=boundary_text)
    if made.boundary.mode == "new":
        raise TemplateError(
            "the tokenizer has no think tokens",
            why="verl loads the model as it is, without rows for new tokens",
            fix="boundary existing with a model that has them, or boundary text: docs/verl.md",
        )
    return made


def example_of(row: Mapping[str, Any]) -> Example:
    """A row of verl's data set as an example. Raises DataError without a reference answer."""
    answer = (row.get("reward_model") or {}).get("ground_truth")
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(
            f"row {row.get('index')} has reward_model.ground_truth {answer!r}",
            why="training scores the reference answer, so every row needs one as text",
            fix="write the answer there: docs/verl.md",
        )
    turns = tuple((str(turn["role"]), str(turn["content"])) for turn in row["raw_prompt"])
    index = int(row.get("index") or 0)
    return Example(prompt=turns, answer=answer, row_id=index, line=index + 1)


# verl is not installed where types are checked
@agent_loop.register(NAME)  # pyright: ignore[reportUntypedClassDecorator]
class SplicedAgentLoop(agent_loop.AgentLoopBase):  # pyright: ignore[reportUntypedBaseClass]
    """Samples a trace up to its closing tag and splices the reference answer in behind it.

    Of the n sessions of a prompt the first samples nothing: it is the empty trace, whose log-
    probabilities are b. For validation use one of verl's own loops.
    """

    def __init__(
        self,
        *args: Any,
        boundary: str = "existing",
        boundary_text: str = "\nThe answer is",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.template = template_of(self.tokenizer, boundary, boundary_text)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """One row: sampled trace, tag, reference answer. Raises DataError for an answer that does
        not fit, RunError where the ids of the server do not end with what stopped it."""
        if "session_id" not in kwargs:
            raise RunError(
                "a prompt came without session_id",
                why="the first session of each prompt is its empty trace",
                fix="trainer.use_v1=True",
            )
        group = self.template.group(example_of(kwargs))
        if int(kwargs["session_id"]) == 0:
            version = int(kwargs["global_steps"]) - 1  # of the weights, as the server names it
            about = {"min_global_steps": version, "max_global_steps": version}
            return self._output(group, splice_nothing(self.template, group), [], about)
        limit = self._limit(group)
        output = await self.server_manager.generate(
            request_id=uuid4().hex,
            prompt_ids=list(group.prompt_ids),
            sampling_params=self._sampling(sampling_params, limit),
        )
        trace, stopped = cut(self.template, output.token_ids[:limit])
        if stopped == "limit" and len(output.token_ids) < limit:
            raise RunError(
                f"the server returned {len(output.token_ids)} tokens of {limit}, and no stop token",
                why="whether a trace closed itself is read off its last token",
                fix="use a rollout server that returns the token which stopped it",
            )
        spliced = splice(self.template, group, trace, stopped == "closed")
        return self._output(group, spliced, output.log_probs or [], output.extra_fields)

    def _limit(self, group: PromptGroup) -> int:
        """The most tokens that a trace may have, so that its row fits."""
        fixed = len(splice(self.template, group, (), closed=False).ids)
        limit = self.rollout_config.response_length - fixed
        window = self.rollout_config.get("max_model_len")
        if window is not None:
            limit = min(limit, window - len(group.prompt_ids) - fixed)
        if limit < 1:
            raise DataError(
                f"row {group.example.row_id} has {len(group.prompt_ids)} tokens of prompt and"
                f" {fixed} of tag and answer",
                why="the trace and what is spliced in behind it share data.max_response_length",
                fix="raise data.max_response_length, or leave the row out",
            )
        return limit

    def _sampling(self, given: Mapping[str, Any], limit: int) -> dict[str, Any]:
        template = self.template
        close = () if template.boundary.closes_by_text else template.boundary.close_ids
        stops = list(dict.fromkeys((*close, *template.end_ids)))
        # other end tokens of the model would stop it where the template sees no end
        return {**given, "max_tokens": limit, "stop_token_ids": stops, "ignore_eos": True}

    def _output(
        self, group: PromptGroup, spliced: Spliced, logps: list[float], about: Mapping[str, Any]
    ) -> Any:
        logps = logps[: spliced.layout.sampled]
        padded = [*logps, *([0.0] * (len(spliced.ids) - len(logps)))]
        return agent_loop.AgentLoopOutput(
            prompt_ids=list(group.prompt_ids),
            response_ids=list(spliced.ids),
            response_mask=spliced.sampled,
            response_logprobs=padded if self.rollout_config.calculate_log_probs else None,
            reward_score=0.0,  # the trainer writes the reward
            num_turns=2,
            metrics=agent_loop.AgentLoopMetrics(),
            extra_fields={
                **about,
                NAME: asdict(spliced.layout),
                "reward_extra_info": {},
                "turn_scores": [],
                "tool_rewards": [],
            },
        )
