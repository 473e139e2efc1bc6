"""A trace between question and answer: against plain transformers on the same ids."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from native_reasoning.config.errors import ConfigError
from native_reasoning.data.template import make_template
from native_reasoning.evaluation.thinking_lm import ThinkingLM, row_of
from native_reasoning.rollout.engine import Sample, Sampling
from tiny import byte_tokenizer, tiny_model

CONTEXT = "Question: What is the sum of two and two?\nAnswer:"
CHOICES = (" four", " five and six", " red")


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval()


def template(boundary="existing"):
    """With a think pair, or the boundary text."""
    think = boundary == "existing"
    return make_template(byte_tokenizer(think=think), boundary=boundary, boundary_text="\nSo")


def adapter(model, boundary="existing", tokens=6, temperature=1.0, **options):
    sampling = Sampling(1, tokens, temperature) if tokens else None
    return ThinkingLM(model, template(boundary), sampling=sampling, **options)


def scoring(context=CONTEXT, choices=CHOICES):
    return [Instance("loglikelihood", {}, (context, c), i) for i, c in enumerate(choices)]


def generating(*contexts, until=("\n\n",), tokens=8):
    options = {"until": list(until), "do_sample": False, "max_gen_toks": tokens}
    return [Instance("generate_until", {}, (c, options), 0) for c in contexts]


def prompt_of(lm, context):
    """The ids before the trace, whose tag is one token."""
    thought = lm.thoughts[context]
    return thought.ids[: len(thought.ids) - thought.length - 1]


def by_hand(model, before, answer):
    """(sum of log-probabilities, all greedy) of ``answer`` after ``before``, both ids."""
    logits = model(torch.tensor([[*before, *answer]])).logits[0].double()
    logps = logits.log_softmax(-1)[len(before) - 1 : -1]
    right = torch.tensor(answer)
    chosen = logps.gather(1, right[:, None]).sum().item()
    return chosen, bool((logps.argmax(-1) == right).all())


# -- thinking on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("boundary", ["existing", "text"])
def test_scores_are_those_of_the_joined_ids(model, boundary, batch_size):
    lm = adapter(model, boundary, batch_size=batch_size)
    found = lm.loglikelihood(scoring())
    tokenizer, thought = lm.template.tokenizer, lm.thoughts[CONTEXT]
    context = tokenizer(CONTEXT)["input_ids"]
    opening = [] if boundary == "text" else [tokenizer.get_vocab()["<think>"]]
    tag = tokenizer("\nSo" if boundary == "text" else "</think>")["input_ids"]
    assert list(thought.ids[: len(context) + len(opening)]) == [*context, *opening]
    assert list(thought.ids[-len(tag) :]) == tag
    assert len(thought.ids) == len(context) + len(opening) + thought.length + len(tag)
    for (logp, greedy), choice in zip(found, CHOICES, strict=True):
        text = choice if boundary == "text" else choice.strip()
        answer = tokenizer(text)["input_ids"]
        expected = by_hand(model, thought.ids, answer)
        assert logp == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


def test_a_greedy_trace_and_answer_are_what_transformers_generates(model):
    lm = adapter(model, tokens=6, temperature=0.0)
    (text,) = lm.generate_until(generating(CONTEXT, until=("zzz",)))
    t = lm.template
    prompt = torch.tensor(
        [[*t.tokenizer(CONTEXT)["input_ids"], t.tokenizer.get_vocab()["<think>"]]]
    )
    close = t.boundary.close_ids[0]
    known = torch.zeros(model.config.vocab_size)
    known[t.vocabulary :] = -torch.inf  # rows that only fill up the table; lm-eval allows them

    def generate(ids, stop, length, mask):
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
            logits_processor=[lambda ids, scores: scores + mask],
        )
        return made[0, ids.shape[1] :].tolist()

    trace = generate(prompt, [close, *t.end_ids], 6, known)
    if trace[-1] in (close, *t.end_ids):
        trace.pop()
    assert list(lm.thoughts[CONTEXT].ids) == [*prompt[0].tolist(), *trace, close]
    before = torch.tensor([list(lm.thoughts[CONTEXT].ids)])
    answer = generate(before, model.generation_config.eos_token_id, 8, torch.zeros(()))
    assert text == t.tokenizer.decode(answer, skip_special_tokens=True)


def test_the_trace_depends_on_seed_and_context_alone(model):
    others = ["One.", "Is red a colour of the rainbow, or is it blue?"]
    alone = adapter(model)
    alone.generate_until(generating(CONTEXT))
    beside = adapter(model, batch_size=3)
    beside.generate_until(generating(others[0], CONTEXT, others[1]))
    beside_scored = adapter(model, batch_size=2)
    beside_scored.loglikelihood([*scoring(others[1]), *scoring()])
    assert alone.thoughts[CONTEXT] == beside.thoughts[CONTEXT] == beside_scored.thoughts[CONTEXT]
    other = adapter(model, seed=1)
    other.generate_until(generating(CONTEXT))
    assert other.thoughts[CONTEXT] != alone.thoughts[CONTEXT]
    assert len({t.text for t in beside.thoughts.values()}) == 3
    assert 0 <= row_of(CONTEXT) < 1 << 63


def test_answers_do_not_depend_on_the_batch(model):
    contexts = [CONTEXT, "One.", "Name a colour of the rainbow, as anyone can see: "]
    alone, beside = adapter(model), adapter(model, batch_size=3)
    apart = [alone.generate_until(generating(c))[0] for c in contexts]
    assert beside.generate_until(generating(*contexts)) == apart
    assert len(set(apart)) == 3


def test_a_cache_that_cannot_be_cut_is_left_whole():
    hybrid = tiny_model("lfm2").eval()  # finished rows cannot leave its convolutions' state
    requests = generating(CONTEXT, "Question: what?\nAnswer:", "2 + 2 =", tokens=4)
    together, alone = (adapter(hybrid, tokens=150, batch_size=n) for n in (3, 1))
    answers = together.generate_until(requests, disable_tqdm=True)
    assert answers == alone.generate_until(requests, disable_tqdm=True)
    assert together.thoughts == alone.thoughts
    assert len({thought.length for thought in together.thoughts.values()}) > 1


def test_an_answer_ends_at_a_stop_sequence(model):
    lm = adapter(model)
    (whole,) = lm.generate_until(generating(CONTEXT, until=("zzz",)))
    stop = whole[2]
    assert lm.generate_until(generating(CONTEXT, until=(stop,))) == [whole.partition(stop)[0]]


def test_a_trace_that_ended_the_turn_or_ran_out_is_closed_by_the_tag(model, monkeypatch):
    lm = adapter(model)
    t = lm.template
    close = t.boundary.close_ids[0]
    for ids, stopped, kept in (
        ((5, 6, t.end_ids[0]), "ended", (5, 6, close)),
        ((5, 6, 7), "limit", (5, 6, 7, close)),
        ((5, close), "closed", (5, close)),
    ):
        made = [[Sample(ids, stopped)]]
        monkeypatch.setattr(lm._engine, "sample", lambda *a, made=made: made)
        lm.loglikelihood(scoring())
        thought = lm.thoughts[CONTEXT]
        assert thought.ids[-len(kept) :] == kept
        assert thought.closed == (stopped == "closed")
        assert thought.length == len(kept) - 1


def test_a_chat_template_opens_the_trace_itself(model):
    lm = adapter(model)
    turns = [{"role": "user", "content": "What is two and two?"}]
    context = lm.apply_chat_template(turns)
    assert context.endswith("<think>")
    lm.loglikelihood(scoring(context))
    opening = lm.template.tokenizer.get_vocab()["<think>"]
    assert prompt_of(lm, context).count(opening) == 1
    prefilled = [*turns, {"role": "assistant", "content": "It is"}]
    begun = lm.apply_chat_template(prefilled, add_generation_prompt=False)
    lm.loglikelihood(scoring(begun))
    assert prompt_of(lm, begun).count(opening) == 1


# -- thinking off ----------------------------------------------------------------------------------


def test_off_splices_the_empty_trace(model):
    lm = adapter(model, tokens=0)
    found = lm.loglikelihood(scoring())
    t = lm.template.tokenizer
    before = t(CONTEXT + "<think></think>")["input_ids"]
    for (logp, greedy), choice in zip(found, CHOICES, strict=True):
        expected = by_hand(model, before, t(choice.strip())["input_ids"])
        assert (logp, greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])
    assert lm.thoughts[CONTEXT].length == 0
    joined = HFLM(pretrained=model, tokenizer=t)
    same = joined.loglikelihood(scoring(CONTEXT + "<think></think>", [c.strip() for c in CHOICES]))
    assert found == same  # to the last bit
    theirs = joined.generate_until(generating(CONTEXT + "<think></think>"))
    assert lm.generate_until(generating(CONTEXT)) == theirs


def test_what_holds_no_question_is_left_to_lm_eval(model):
    lm = adapter(model)
    plain = HFLM(pretrained=model, tokenizer=lm.template.tokenizer)
    rolling = [Instance("loglikelihood_rolling", {}, ("The answer is four.",), 0)]
    assert lm.loglikelihood_rolling(rolling) == plain.loglikelihood_rolling(rolling)
    assert lm.loglikelihood(scoring("")) == plain.loglikelihood(scoring(""))
    assert lm.thoughts == {}


# -- room ------------------------------------------------------------------------------------------


def test_a_long_context_is_cut_on_the_left_before_the_trace_is_sampled(model):
    lm = adapter(model, tokens=6)
    context = "0 1 2 3 4 5 6 7 8 9 " * 80 + CONTEXT
    lm.generate_until(generating(context, tokens=8))
    ids = lm.template.tokenizer(context)["input_ids"]
    thought = lm.thoughts[context]
    kept = lm.max_length - 6 - 1 - 8 - 1  # trace, tag, answer, opening tag
    assert list(thought.ids[:kept]) == ids[-kept:]
    assert len(thought.ids) + 8 <= lm.max_length


def test_no_room_for_a_question_is_an_error(model):
    lm = adapter(model, tokens=500)
    with pytest.raises(ConfigError, match="512 positions"):
        lm.generate_until(generating(CONTEXT, tokens=20))
