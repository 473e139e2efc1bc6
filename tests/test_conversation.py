"""Conversations: the prompts of training, what is heard, and how likely a reference is."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from native_reasoning.config.errors import DataError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example
from native_reasoning.data.template import make_template
from native_reasoning.demo import base_path
from native_reasoning.evaluation.conversation import Conversation, load_asked
from tiny import byte_tokenizer, tiny_model

QUESTION = "tell 1 2 3 4 5"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    config = NRTConfig(
        output_dir=str(tmp_path_factory.mktemp("nowhere")),
        use_cpu=True,
        max_trace_length=30,
        max_answer_length=30,
    )
    return load_asked(str(base_path()), config, ("on",)), config


@pytest.fixture
def talk(asked) -> Conversation:
    return Conversation(asked[0].model, asked[0].template, asked[1])


def test_a_reply_is_thinking_and_answer_and_the_same_again(talk):
    one = talk.ask(QUESTION)
    assert one.closed
    assert one.ended
    assert len(one.reasoning.split()) == one.tokens > 0
    assert one.answer.split()[1] == "friend"
    assert (one.logp, one.logp_no_think) == (None, None)
    talk.forget()
    assert talk.ask(QUESTION) == one


def test_what_is_heard_is_the_reply_token_for_token_as_it_is_sampled(talk):
    heard: list[tuple[str, str]] = []
    passes, sampled = [], []
    embedding = talk.model.get_input_embeddings()
    counting = embedding.register_forward_hook(lambda *_: passes.append(1))

    def listen(part, text):
        heard.append((part, text))
        sampled.append(len(passes))

    reply = talk.ask(QUESTION, listen=listen)
    counting.remove()
    thinking = [text for part, text in heard if part == "reasoning"]
    answer = [text for part, text in heard if part == "answer"]
    assert "".join(thinking).strip() == reply.reasoning
    assert "".join(answer).strip() == reply.answer
    assert len(thinking) == reply.tokens
    assert [part for part, _ in heard] == ["reasoning"] * len(thinking) + ["answer"] * len(answer)
    assert sampled[0] < sampled[len(thinking) - 1] < sampled[-1]


def test_later_turns_hold_answers_without_thinking(talk, monkeypatch):
    prompts, sample = [], talk.engine.sample

    def seen(given, *args, **kwargs):
        prompts.append(given)
        return sample(given, *args, **kwargs)

    monkeypatch.setattr(talk.engine, "sample", seen)
    first = talk.ask(QUESTION)
    talk.ask("tell 5 4 3 2 1")
    turns = (("user", QUESTION), ("assistant", first.answer), ("user", "tell 5 4 3 2 1"))
    example = Example(turns, "x", row_id=0, line=1)
    assert tuple(prompts[2][0]) == talk.template.prompt_ids(example)
    assert first.reasoning
    assert first.reasoning not in talk.template.tokenizer.decode(prompts[2][0])
    assert len(talk.turns) == 4


def test_the_seed_chooses_the_trace(talk):
    first = talk.ask(QUESTION)
    talk.forget()
    talk.config = replace(talk.config, seed=talk.config.seed + 1)
    assert talk.ask(QUESTION).reasoning != first.reasoning


def test_a_model_whose_cache_cannot_be_repeated_replies(tmp_path):
    config = NRTConfig(
        output_dir=str(tmp_path), use_cpu=True, max_trace_length=12, max_answer_length=6
    )
    hybrid, template = tiny_model("lfm2"), make_template(byte_tokenizer())
    assert Conversation(hybrid, template, config).ask("Why?").reasoning


def by_hand(talk, trace: list[int], reference: str) -> float:
    """The mean log-probability of the reference's tokens after a trace with its tag."""
    t = talk.template
    example = Example((("user", QUESTION),), reference, row_id=0, line=1)
    answer = list(t.answer_ids(reference))
    ids = [*t.prompt_ids(example), *trace, *t.gap_ids, *answer]
    with torch.no_grad():
        logits = talk.model(input_ids=torch.tensor([ids])).logits[0, :, : t.vocabulary]
    logps = logits.double().log_softmax(-1)[range(-len(answer) - 1, -1), answer]
    return fmean(logps.tolist())


def test_a_reference_is_scored_after_each_trace_and_after_none(talk):
    reference = "dear friend i am very happy to say that the answer is 5"
    close = list(talk.template.boundary.close_ids)
    without = by_hand(talk, close, reference)
    found = []
    for seed in range(16):
        talk.forget()
        talk.config = replace(talk.config, seed=seed)
        reply = talk.ask(QUESTION, reference=reference)
        trace = talk.template.tokenizer(reply.reasoning, add_special_tokens=False)["input_ids"]
        assert reply.logp == pytest.approx(by_hand(talk, [*trace, *close], reference), abs=1e-4)
        assert reply.logp_no_think == pytest.approx(without, abs=1e-4)
        found.append(round(reply.logp, 3))
    assert len(set(found)) > 1
    talk.forget()
    none = talk.ask(QUESTION, think=False, reference=reference)
    assert none.logp == pytest.approx(without, abs=1e-4)


def test_without_thinking_the_answer_comes_at_once(talk):
    heard: set[str] = set()
    reply = talk.ask(QUESTION, think=False, listen=lambda part, text: heard.add(part))
    assert (reply.reasoning, reply.tokens) == (None, 0)
    assert heard == {"answer"}
    assert reply.answer.split()[1] == "friend"


def test_a_trace_that_does_not_close_is_closed_by_force(asked):
    model, config = asked
    short = NRTConfig(**{**vars_of(config), "max_trace_length": 2})
    reply = Conversation(model.model, model.template, short).ask(QUESTION)
    assert not reply.closed
    assert reply.tokens == 2
    assert reply.answer.split()[1] == "friend"


def vars_of(config: NRTConfig) -> dict:
    return {
        "output_dir": config.output_dir,
        "use_cpu": True,
        "max_answer_length": config.max_answer_length,
    }


def test_a_conversation_that_is_too_long_says_so(talk):
    talk.context = 24
    with pytest.raises(DataError, match="the model has 24 positions"):
        talk.ask(" ".join("123456789" * 4))
    assert talk.turns == []
