"""A vLLM that is pretended: what ``rollout/vllm.py`` asks of ``vllm.LLM``, without vLLM."""

import sys
import types
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import torch
import transformers
from transformers import AutoConfig

from native_reasoning.rollout import vllm

PARTS = {"weights", "kv_cache"}


def drawn(model, vocabulary, prompt, seed, temperature, max_tokens, stop_ids):
    """Ids after ``prompt`` and the log-probability of each, one forward for each token."""
    random, ids, logps = torch.Generator().manual_seed(seed), [], []
    while len(ids) < max_tokens and not (ids and ids[-1] in stop_ids):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1, :vocabulary]
        said = (logits / (temperature or 1.0)).log_softmax(-1)
        token = said.argmax() if temperature == 0 else said.exp().multinomial(1, generator=random)
        ids.append(int(token))
        logps.append(said[ids[-1]].item())
    return ids, logps


class PretendedLLM:
    """Keeps what happens to it, in order; answers with the prompt's last id, again and again.
    Asleep it neither takes weights nor answers, and it has forgotten what it held."""

    def __init__(self):
        self.done, self.weights, self.asleep, self.new = [], {}, set(), set()
        model = SimpleNamespace(load_weights=self.load)
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        executor = SimpleNamespace(driver_worker=runner)
        self.llm_engine = SimpleNamespace(model_executor=executor)

    def load(self, named):
        assert "weights" not in self.asleep
        for name, weight in named:
            assert name not in self.new, f"{name} came twice"
            self.new.add(name)
            self.weights[name] = weight.clone()
        self.note("load")

    def note(self, *what):
        if self.done[-1:] != [what]:
            self.done.append(what)

    def reset_prefix_cache(self):
        self.new.clear()
        self.note("reset")

    def wake_up(self, tags):
        self.asleep -= {*tags}
        self.note("wake", *tags)

    def sleep(self, level):
        self.asleep |= PARTS
        self.weights.clear()
        self.note("sleep", level)

    def generate(self, prompts, params, use_tqdm):
        assert not self.asleep
        self.note("generate")
        self.asked = list(zip(prompts, params, strict=True))
        return [self._output(p["prompt_token_ids"], given) for p, given in self.asked]

    def _output(self, prompt, given):
        ids, logps = self.answer(prompt, given)
        pairs = zip(ids, logps, strict=True)
        said = [{7: SimpleNamespace(logprob=0.0), i: SimpleNamespace(logprob=l)} for i, l in pairs]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=said)])

    def answer(self, prompt, given):
        return [prompt[-1]] * given["max_tokens"], [-0.5] * given["max_tokens"]


class SamplingLLM(PretendedLLM):
    """Samples from the weights that it was given."""

    def generate(self, prompts, params, use_tqdm):
        kind = getattr(transformers, self.config.architectures[0])
        self.model = kind(self.config).eval()  # from_config would make it empty under ZeRO-3
        assert not self.model.load_state_dict(self.weights, strict=False).unexpected_keys
        return super().generate(prompts, params, use_tqdm)

    def answer(self, prompt, given):
        names = ("seed", "temperature", "max_tokens", "stop_token_ids")
        return drawn(self.model, self.config.vocab_size, prompt, *(given[n] for n in names))


def install(set_item, set_attribute, made):
    """``made`` is the vLLM that is started; it keeps what it was started with. The two setters are
    ``monkeypatch.setitem`` and ``setattr``, or such as never undo it."""
    import trl.generation.vllm_generation  # noqa: F401  before there seems to be a vllm

    def start(folder, settings):
        torch.manual_seed(0)  # as vLLM does
        made.config, made.settings = AutoConfig.from_pretrained(folder), settings
        return made

    module = types.ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.SamplingParams = lambda **given: given
    set_item(sys.modules, "vllm", module)
    set_attribute(vllm, "_start_vllm", start)
    return made
