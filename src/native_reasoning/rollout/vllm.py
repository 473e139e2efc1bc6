"""Sampling by vLLM: a request of its own for each trace, with a seed of its own.

The seed is a pure function of (run's seed, domain, step, row, trace), as the random numbers of
HFEngine are (noise.py), so what else is sampled at the same time plays no role but for rounding.
Prompts go out and traces come back as token ids. What vLLM says of the probability of its tokens is
kept as a diagnostic (meter.py): rewards and gradients come from the trainer's weights alone.

``Colocated`` runs vLLM in this process, ``Served`` asks a server. vLLM and TRL are imported when
vLLM is started, before the first rollout.
"""

import copy
import os
import tempfile
from abc import abstractmethod
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.config.nrt_config import NRTConfig, model_dtype
from native_reasoning.data.template import Template
from native_reasoning.model.policy import context_of
from native_reasoning.rollout.engine import NoiseKey, RolloutEngine, Sample, Sampling, Stop
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.noise import seed_of

#: Where a server is unless vllm_server_base_url says otherwise.
LOCAL = "http://127.0.0.1:8000"
#: Seconds in which the server has to be up.
_PATIENCE = 240.0
#: Requests that a server gets at once.
CONCURRENT = 64


def training_engine(
    own: HFEngine, args: NRTConfig, template: Template, accelerator: Accelerator
) -> RolloutEngine:
    """What samples the traces that are trained on: vLLM where it is asked for, which starts at the
    first rollout, else ``own``. Raises ConfigError where a package is missing."""
    if not args.use_vllm:
        return own
    for package in ("vllm", "trl", "requests"):
        if find_spec(package) is None:
            raise ConfigError(
                f"use_vllm needs the package {package}, which is not installed",
                why="vLLM samples, and TRL brings it the weights",
                fix="install vllm and trl as docs/vllm.md says, or leave use_vllm out",
            )
    kind = Colocated if args.vllm_mode == "colocate" else Served
    return kind(own.model, args, template, accelerator)


@dataclass(frozen=True)
class Request:
    """One sequence to be sampled. It ends after a token of ``stop_ids``, which is part of it, or
    after ``max_tokens``, and at no other token."""

    prompt: tuple[int, ...]
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    stop_ids: tuple[int, ...]

    def parameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """How it is sampled, by vLLM's names: what TRL's client has a parameter for, the rest."""
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "logprobs": 0,  # of the sampled token alone
        }
        ends = {"stop_token_ids": list(self.stop_ids), "ignore_eos": True}
        return named, {"seed": self.seed, **ends}


@dataclass(frozen=True)
class Completion:
    """The sampled ids, and the log-probability that each was drawn with."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]


class VLLMEngine(RolloutEngine):
    """A rollout engine on vLLM with the weights of ``model``."""

    def __init__(
        self, model: PreTrainedModel, args: NRTConfig, template: Template, accelerator: Accelerator
    ) -> None:
        self.model, self.args, self.template = model, args, template
        self.accelerator, self.stop = accelerator, template.stop_trace
        self.weights: Any = None

    @abstractmethod
    def wake(self) -> None:
        """Makes vLLM ready, with the policy's weights as they are now."""

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """A reply to each request, in order. Equal requests and weights give equal replies."""

    @abstractmethod
    def sleep(self) -> None:
        """vLLM is not asked until ``wake`` comes again, and may give its memory back."""

    @contextmanager
    def ready(self) -> Generator[None]:
        """See ``RolloutEngine``: weights are sent on entry, always."""
        self.wake()
        yield
        self.sleep()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_ids: Sequence[int],
        sampling: Sampling,
        key: NoiseKey,
        stop: Stop,
        traces: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """See ``RolloutEngine``. vLLM stops at the end-of-turn tokens and the closing tag that
        ``stop`` names; what else ``stop`` says, such as a tag that is text, is cut afterwards, with
        the same ids as if sampling had stopped there."""
        k, stop_ids = sampling.num_generations, self._stop_ids(stop)
        requests = [
            Request(
                prompt=tuple(prompt),
                seed=seed_of(key.seed, key.domain, key.step, row, trace),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                stop_ids=stop_ids,
            )
            for prompt, row, first in zip(
                prompts, row_ids, traces or [0] * len(prompts), strict=True
            )
            for trace in range(first, first + k)
        ]
        pairs = zip(requests, self.generate(requests), strict=True)
        flat = [self._cut(request, reply, stop) for request, reply in pairs]
        return [flat[i : i + k] for i in range(0, len(flat), k)]

    def _stop_ids(self, stop: Stop) -> tuple[int, ...]:
        """The tokens that end a sequence wherever they stand."""
        template = self.template
        known = dict.fromkeys((*template.end_ids, *template.boundary.close_ids))
        return tuple(token for token in known if stop([token]) is not None)

    def _cut(self, request: Request, reply: Completion, stop: Stop) -> Sample:
        ids: list[int] = []
        for token in reply.ids:
            if token >= self.template.vocabulary:
                raise RunError(
                    f"vLLM sampled token {token}, which the tokenizer does not have",
                    why="its embedding is padding, and the trainer never scores such a token",
                    fix="serve a model whose vocab_size is that of its tokenizer",
                )
            ids.append(token)
            if (reason := stop(ids)) is not None:
                return Sample(tuple(ids), reason, reply.logps[: len(ids)])
        if len(ids) < request.max_tokens:
            raise RunError(
                f"vLLM ended a sequence after {len(ids)} of {request.max_tokens} tokens",
                why=f"with a prompt of {len(request.prompt)} its context was full",
                fix="a smaller max_trace_length (a server: or a larger --max-model-len)",
            )
        return Sample(tuple(ids), "limit", reply.logps)


class Colocated(VLLMEngine):
    """vLLM in this process and on this device, one for each rank.

    It is made from the model's configuration alone; all weights come from the trainer, so new think
    tokens need no folder that has them, and its vocabulary is the tokenizer's.
    """

    def _start(self) -> None:
        from native_reasoning.rollout.sync import WeightSync

        vocabulary = self.template.vocabulary
        with tempfile.TemporaryDirectory() as folder:
            config_of(self.model, vocabulary).save_pretrained(folder)
            device = self.accelerator.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # vLLM seeds it
                self.llm = _start_vllm(folder, self._settings())
        sleeps = self.args.vllm_enable_sleep_mode
        self.weights = WeightSync(
            self.model, self.accelerator, llm=self.llm, vocabulary=vocabulary, sleeps=sleeps
        )

    def _settings(self) -> dict[str, Any]:
        """Arguments of ``vllm.LLM``."""
        a, cpu = self.args, self.accelerator.device.type == "cpu"
        dtype = model_dtype(a) if a.bf16 or a.fp16 else self.model.dtype
        settings = {
            "dtype": str(dtype).removeprefix("torch."),
            "load_format": "dummy",  # no weights from a folder
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",  # at the temperature, as the trainer's are
            "max_model_len": longest(a, self.model),
            "gpu_memory_utilization": a.vllm_gpu_memory_utilization,
            "enable_sleep_mode": a.vllm_enable_sleep_mode and not cpu,
            "enforce_eager": cpu,  # else vLLM compiles the model with a C++ compiler
            "trust_remote_code": a.trust_remote_code,
            "seed": 0,  # each request has its own
        }
        if a.world_size > 1:
            settings["distributed_executor_backend"] = "external_launcher"
        return settings

    @contextmanager
    def _apart(self) -> Generator[None]:
        """vLLM's arithmetic is its own, also inside the trainer's autocast. Raises RunError where
        it does not get the memory that it needs."""
        try:
            with torch.autocast(self.accelerator.device.type, enabled=False):
                yield
        except (RuntimeError, ValueError) as error:
            too_full = isinstance(error, ValueError) and "memory" in str(error)
            if not (too_full or should_reduce_batch_size(error)):
                raise
            raise RunError(
                f"out of memory in vLLM: {str(error).splitlines()[0]}",
                why="it shares the device with what trains",
                fix=f"another --vllm-gpu-memory-utilization than "
                f"{self.args.vllm_gpu_memory_utilization:g} (less where the device is full, more "
                "where vLLM's caches are), a smaller --max-prompt-length, "
                "--vllm-enable-sleep-mode true, or --vllm-mode server",
            ) from None

    def wake(self) -> None:
        """See ``VLLMEngine``."""
        with self._apart():
            if self.weights is None:
                self._start()
            assert self.weights is not None
            self.weights.sync_weights()
            if self.args.vllm_enable_sleep_mode:
                self.llm.wake_up(tags=["kv_cache"])  # the last part: now it takes requests

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See ``VLLMEngine``."""
        from vllm import SamplingParams  # type: ignore[attr-defined]

        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        parameters = (request.parameters() for request in requests)
        each = [SamplingParams(n=1, detokenize=False, **a, **b) for a, b in parameters]
        replies = []
        with self._apart():
            outputs = self.llm.generate(prompts, each, use_tqdm=False)
        for output in outputs:
            (one,) = output.outputs
            pairs = zip(one.token_ids, one.logprobs, strict=True)
            logps = tuple(said[token].logprob for token, said in pairs)
            replies.append(Completion(tuple(one.token_ids), logps))
        return replies

    def sleep(self) -> None:
        """See ``VLLMEngine``."""
        if self.args.vllm_enable_sleep_mode:
            self.llm.sleep(level=2)  # forgets the weights, which come anew


class Served(VLLMEngine):
    """A vLLM server, which each rank asks for its own traces; the weights come from rank 0."""

    def connect(self) -> None:
        """Finds the server. Raises RunError where none answers."""
        from trl.generation.vllm_client import VLLMClient

        url = self.args.vllm_server_base_url or LOCAL
        try:
            self.client = VLLMClient(
                base_url=url, group_port=_group_port(url), connection_timeout=_PATIENCE
            )
        except (ConnectionError, ValueError):  # a port that is no number
            raise RunError(
                f"no vLLM server answers at {url}",
                why=f"traces are sampled there; {_PATIENCE:g} seconds were waited",
                fix="start it as docs/vllm.md says, or vllm_server_base_url, or vllm_mode colocate",
            ) from None

    def wake(self) -> None:
        """See ``VLLMEngine``."""
        if self.weights is None:
            from native_reasoning.rollout.sync import WeightSync

            self.connect()
            if self.accelerator.is_main_process:
                self.client.init_communicator(device=self.accelerator.device)
            self.weights = WeightSync(self.model, self.accelerator, client=self.client)
        self.weights.sync_weights()
        self.accelerator.wait_for_everyone()  # nobody asks before the weights are there

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See ``VLLMEngine``."""
        with ThreadPoolExecutor(CONCURRENT) as pool:
            return [*pool.map(self._ask, requests)]

    def _ask(self, request: Request) -> Completion:
        named, rest = request.parameters()
        said: Any = self.client.generate([list(request.prompt)], generation_kwargs=rest, **named)
        (ids,), (logps,) = said["completion_ids"], said["logprobs"]
        return Completion(tuple(ids), tuple(one for (one,) in logps))

    def sleep(self) -> None:
        """See ``VLLMEngine``: a server has a device of its own."""


def _group_port(url: str) -> int:
    """The port over which the server at ``url`` gets the weights: TRL's own, 51216, for 8000, so
    that two servers on a machine have two."""
    return 51216 + ((urlsplit(url).port or 8000) - 8000) % 10_000


def config_of(model: PreTrainedModel, vocabulary: int) -> Any:
    """The model's configuration as vLLM is to build it."""
    config = copy.deepcopy(model.config)
    config.architectures = config.architectures or [type(model).__name__]
    config.get_text_config().vocab_size = vocabulary
    return config


def longest(args: NRTConfig, model: PreTrainedModel) -> int:
    """Tokens of the longest row that the settings allow, within what the model was made for."""
    answers = args.resolved_objective().samples_answers
    room = args.max_trace_length + (args.max_answer_length if answers else 0)
    # the gap after the tag is a few tokens
    return min(args.max_prompt_length + room + 8, context_of(model) or 10**9)


def _start_vllm(folder: str, settings: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would tell its makers of the run
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # weights are loaded in place
    from vllm import LLM, _custom_ops  # type: ignore[attr-defined]
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    if current_platform.is_cpu():
        # else vLLM packs weights for oneDNN and drops them: none could be loaded again, and a head
        # that is tied to the embedding would stay the old one
        _custom_ops._supports_onednn = False
    return LLM(model=folder, **settings)
