"""HFEngine against a loop that forwards every row alone, whole, for every token."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import tiny
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.template import make_template
from native_reasoning.model.forward import inference, left_pad, positions
from native_reasoning.rollout.engine import NoiseKey, Sample, Sampling
from native_reasoning.rollout.hf import HFEngine, decoder_of, decoding_head
from native_reasoning.rollout.noise import uniforms
from native_reasoning.scoring.capabilities import capabilities_of

KINDS = ["llama", "gpt2", "mistral", "qwen3", "gemma2"]
VOCABULARY = 333  # of 352 rows of the embedding
CLOSE, END = 332, 2
#: longer and shorter than Mistral's window of 8
PROMPTS = [list(range(50, 73)), [90, 91], list(range(100, 112)), [7]]
ROWS = [5, 0, 11, 3]
KEY = NoiseKey(seed=0, step=4)
SAMPLING = Sampling(num_generations=3, max_tokens=12)


def never(ids):
    return None


def often(ids):
    """Stops about every fourth token, so that rows leave the batch at different times."""
    return {0: "closed", 1: "ended"}.get(ids[-1] % 8)


def engine(model, stop=often, **options):
    return HFEngine(model, stop, VOCABULARY, **options)


def naive(model, prompt, row, k, sampling, key, stop):
    """One sequence, and how near each uniform number came to a boundary of the distribution."""
    ids, near = [], []
    noise = uniforms(key.seed, key.domain, key.step, row, k, sampling.max_tokens)
    for t in range(sampling.max_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1, :VOCABULARY]
        cdf = (logits.double() / sampling.temperature).softmax(-1).cumsum(-1)
        near.append((cdf - noise[t]).abs().min().item())
        ids.append(int((cdf <= noise[t]).sum()))
        if stop(ids) is not None:
            return ids, stop(ids), near
    return ids, "limit", near


def same_up_to_rounding(got, reference):
    """Equal, or parted at a token whose number lies within 1e-6 of a boundary."""
    ids, stopped, near = reference
    if (list(got.ids), got.stopped) == (ids, stopped):
        return True
    pairs = enumerate(zip(got.ids, ids, strict=False))
    parted = next((t for t, (one, other) in pairs if one != other), None)
    assert parted is not None, "one is a part of the other"
    assert near[parted] < 1e-6, f"token {parted} differs {near[parted]} away from a boundary"
    return False


def references(model, seed, stop=often, sampling=SAMPLING):
    key = replace(KEY, seed=seed)
    pairs = zip(PROMPTS, ROWS, strict=True)
    k = range(sampling.num_generations)
    return [[naive(model, p, r, i, sampling, key, stop) for i in k] for p, r in pairs]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [True, False])
def test_ids_are_those_of_each_row_alone_without_a_cache(kind, share):
    model, kinds = tiny.tiny_model(kind).eval(), set()
    for seed in range(3):
        out = engine(model, share=share).sample(
            PROMPTS, ROWS, SAMPLING, replace(KEY, seed=seed), often
        )
        expected = references(model, seed)
        flat = [s for group in out for s in group]
        rows = [r for group in expected for r in group]
        assert sum(map(same_up_to_rounding, flat, rows)) >= len(flat) - 1
        kinds |= {s.stopped for s in flat}
        assert len({len(s.ids) for s in flat}) > 2  # rows left the batch one after the other
    assert kinds >= {"closed", "ended"}


def test_ids_do_not_depend_on_batch_size_or_on_the_other_prompts():
    model = tiny.tiny_model("mistral").eval()
    equal, total = 0, 0
    for seed in range(10):
        key = replace(KEY, seed=seed)
        expected = references(model, seed)
        for most in (1, 60, 90, math.inf):
            out = engine(model, max_tokens=most).sample(PROMPTS, ROWS, SAMPLING, key, often)
            for got, reference in zip(out, expected, strict=True):
                equal += sum(map(same_up_to_rounding, got, reference))
                total += len(got)
        for order in ([2, 0, 3, 1], [1], [3, 2]):
            out = engine(model).sample(
                [PROMPTS[i] for i in order], [ROWS[i] for i in order], SAMPLING, key, often
            )
            for got, i in zip(out, order, strict=True):
                equal += sum(map(same_up_to_rounding, got, expected[i]))
                total += len(got)
    assert equal >= 0.99 * total


@torch.no_grad()
def follow(decoder, model, prompts, k):
    """Checks the logits of one row a token against a forward of that row alone."""
    rows = [[*p] for p in prompts for _ in range(k)]
    for t in range(80):  # past the first buffers
        expected = model(input_ids=torch.tensor([rows[t % 12]])).logits[0, -1]
        torch.testing.assert_close(decoder.logits[t % 12], expected, rtol=1e-5, atol=1e-5)
        tokens = torch.tensor([(31 * t + 7 * i) % VOCABULARY for i in range(12)])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)
        decoder.advance(tokens)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_agree_with_whole_forwards(kind, share):
    model, k = tiny.tiny_model(kind).eval(), 3
    decoder = decoder_of(model, share)
    with torch.no_grad():
        decoder.start(PROMPTS, k)
    follow(decoder, model, PROMPTS, k)


#: Windows that the prompts fit into and that their continuations grow out of.
@pytest.mark.parametrize(("kind", "window"), [("llama", None), ("mistral", 64), ("gemma2", 64)])
@pytest.mark.parametrize(
    ("row_ids", "forwarded"),
    [(ROWS, [(1, 20), (4, 23)]), ([5, 5, 3, 3], [(1, 19), (2, 1), (4, 23)])],
    ids=["four questions", "two questions"],
)
def test_what_prompts_begin_with_is_forwarded_once(kind, window, row_ids, forwarded, monkeypatch):
    config = {} if window is None else {"sliding_window": window}
    model, k, start = tiny.tiny_model(kind, **config).eval(), 3, list(range(200, 220))
    prompts = [start + prompt for prompt in PROMPTS]
    decoder, widths, forward = decoder_of(model, True), [], type(model.base_model).forward
    with torch.no_grad(), monkeypatch.context() as watched:
        watched.setattr(
            type(model.base_model),
            "forward",
            lambda *args, **given: (
                widths.append(given["input_ids"].shape) or forward(*args, **given)
            ),
        )
        decoder.start(prompts, k, row_ids)
    assert widths == forwarded
    follow(decoder, model, prompts, k)


@pytest.mark.parametrize("share", [True, False])
def test_contexts_of_a_question_are_sampled_from_together_as_they_are_alone(share):
    """As in an evaluation: a question with each of its traces, drawn from or most likely."""
    model, question = tiny.tiny_model("llama").eval(), list(range(100, 130))
    contexts = [[*question, *end] for end in ([1, 2, 3], [4], [5, 6], [5, 6])] + [PROMPTS[0]]
    about = ([7, 7, 7, 7, 9], replace(SAMPLING, num_generations=1), KEY, often)
    numbers = [0, 1, 1, None, 0]
    together = engine(model, share=share).sample(contexts, *about, numbers)
    for i, context in enumerate(contexts):
        alone = about[0][i : i + 1], *about[1:], numbers[i : i + 1]
        assert engine(model, share=share).sample([context], *alone) == together[i : i + 1]
    cold = replace(about[1], temperature=0.0)
    assert together[3] == engine(model).sample(contexts[3:4], [7], cold, KEY, often)[0]


def test_architectures_that_can_keep_a_prompt_once_are_recognised():
    template = make_template(tiny.byte_tokenizer())

    def shares(kind, **config):
        return capabilities_of(tiny.tiny_model(kind, **config), template).share

    assert all(shares(kind) for kind in KINDS)
    assert not shares("lfm2")
    assert not shares("gemma2", attn_logit_softcapping=2.0)
    assert not shares("gemma2", final_logit_softcapping=2.0)


def test_attention_is_as_before_after_a_rollout_even_one_that_failed():
    model = tiny.tiny_model("llama").eval()
    before = model.config._attn_implementation
    engine(model).sample(PROMPTS, ROWS, SAMPLING, KEY, never)
    assert model.config._attn_implementation == before

    def fails(ids):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        engine(model).sample(PROMPTS, ROWS, SAMPLING, KEY, fails)
    assert model.config._attn_implementation == before


def test_the_packed_head_multiplies_as_the_plain_one_does():
    model = tiny.tiny_model("llama")
    hidden = torch.randn(5, 32)
    with torch.no_grad():
        for bias in (None, torch.nn.Parameter(torch.randn(352))):
            model.lm_head.bias = bias
            torch.testing.assert_close(decoding_head(model)(hidden), model.lm_head(hidden))
            with torch.autocast("cpu", torch.bfloat16):
                found, plain = decoding_head(model)(hidden), model.lm_head(hidden)
                assert found.dtype == plain.dtype == torch.bfloat16
                torch.testing.assert_close(found, plain)


def test_convolution_layers_keep_the_states_of_the_rows_that_are_left():
    model = tiny.tiny_model("lfm2").eval()
    out = engine(model, share=False).sample(PROMPTS, ROWS, SAMPLING, replace(KEY, seed=0), often)
    for got, reference in zip(out, references(model, 0), strict=True):
        assert all(map(same_up_to_rounding, got, reference))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_greedy_equals_generate(kind):
    model = tiny.tiny_model(kind).eval()
    ends = [END, 17, 40, 200]
    greedy = HFEngine(model, never, 352).sample(
        PROMPTS,
        ROWS,
        Sampling(1, 20, temperature=0.0),
        KEY,
        lambda ids: "ended" if ids[-1] in ends else None,
    )
    for prompt, (sample,) in zip(PROMPTS, greedy, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=ends,
        )
        assert list(sample.ids) == out[0, len(prompt) :].tolist()


def test_rows_that_stop_do_not_change_the_others():
    model = tiny.tiny_model("mistral").eval()
    free = engine(model).sample(PROMPTS, ROWS, SAMPLING, KEY, never)
    stopped = engine(model).sample(PROMPTS, ROWS, SAMPLING, KEY, often)
    for group, whole in zip(stopped, free, strict=True):
        for got, sample in zip(group, whole, strict=True):
            assert sample.stopped == "limit"
            assert len(sample.ids) == SAMPLING.max_tokens
            cut = next((t for t in range(12) if often(list(sample.ids[: t + 1]))), 11)
            assert got.ids == sample.ids[: cut + 1]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_looking_for_stops_every_few_tokens_changes_no_sample(kind, share, monkeypatch):
    model = tiny.tiny_model(kind).eval()
    long = [*range(50, 302)] * 2  # leaves 8 of 512 positions, and few rows end with it
    sampling, samples, looks = replace(SAMPLING, max_tokens=21), [], []
    to_host = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: looks.append(every) or to_host(self))

    def seldom(ids):
        return {0: "closed", 1: "ended"}.get(ids[-1] % 24)

    for seed in range(2):
        key, found = replace(KEY, seed=seed), []
        for every in (1, 3, 8):
            sampler = engine(model, share=share, look_every=every)
            found.append(sampler.sample([*PROMPTS, long], [*ROWS, 2], sampling, key, seldom))
        assert found[0] == found[1] == found[2]
        samples += [s for group in found[0] for s in group]
    assert {s.stopped for s in samples} == {"closed", "ended", "limit"}
    assert {len(s.ids) for s in samples if s.stopped == "limit"} == {8, 21}
    assert len({len(s.ids) for s in samples}) > 5
    assert looks.count(1) > 2 * looks.count(3) > 2 * looks.count(8) > 0


def test_batch_shrinks_as_rows_finish_and_ends_with_the_last():
    model = tiny.tiny_model("llama").eval()
    sampler, sizes = engine(model), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    out = sampler.sample(PROMPTS, ROWS, replace(SAMPLING, max_tokens=40), KEY, often)
    hook.remove()
    lengths = [len(s.ids) for group in out for s in group]
    assert sizes[0] == (4, 23)  # one prefill, each prompt once
    rows = [n for n, width in sizes[1:]]
    assert all(width == 1 for _, width in sizes[1:])
    assert len(sizes) == max(lengths)  # no forward after the last token
    assert all(one >= other for one, other in pairwise(rows))
    assert rows[-1] < 12
    assert sum(rows) < 1.5 * (sum(lengths) - 12) + 12


def test_padding_rows_of_the_vocabulary_are_never_sampled():
    model = tiny.tiny_model("llama").eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCABULARY:] *= 40
    for sampling in (SAMPLING, replace(SAMPLING, temperature=0.0)):
        out = engine(model).sample(PROMPTS, ROWS, sampling, KEY, never)
        assert max(i for group in out for s in group for i in s.ids) < VOCABULARY


def test_step_domain_seed_row_and_trace_number_move_the_traces():
    model = tiny.tiny_model("llama").eval()

    def ids(key=KEY, rows=ROWS[:1], prompts=PROMPTS[:1]):
        out = engine(model).sample(prompts, rows, SAMPLING, key, never)
        return [s.ids for group in out for s in group]

    base = ids()
    assert ids() == base
    assert len(set(base)) == 3
    for other in (replace(KEY, step=5), replace(KEY, domain=1), replace(KEY, seed=1)):
        assert not set(ids(other)) & set(base)
    assert not set(ids(rows=[6])) & set(base)
    twice = ids(prompts=[PROMPTS[0]] * 2, rows=[5, 5])
    assert twice[:3] == twice[3:] == base


def test_temperature_and_nucleus_are_used():
    model = tiny.tiny_model("llama").eval()
    cold = replace(SAMPLING, temperature=0.3)
    for (got, *_), prompt, row in zip(
        engine(model).sample(PROMPTS, ROWS, cold, KEY, never), PROMPTS, ROWS, strict=True
    ):
        assert same_up_to_rounding(got, naive(model, prompt, row, 0, cold, KEY, never))
    narrow = replace(SAMPLING, top_p=1e-3)  # the likeliest token alone
    greedy = replace(SAMPLING, temperature=0.0)
    one, other = (engine(model).sample(PROMPTS, ROWS, s, KEY, never) for s in (narrow, greedy))
    assert one == other


# -- Traces ----------------------------------------------------------------------------------------


def groups():
    example = Example((("user", "?"),), "!", row_id=0, line=1)
    pairs = zip(PROMPTS, ROWS, strict=True)
    return [PromptGroup(replace(example, row_id=r), tuple(p), (1, END)) for p, r in pairs]


def test_traces_end_with_the_tag_or_without_the_end_of_turn_or_at_the_limit():
    model = tiny.tiny_model("llama").eval()
    samples = engine(model).sample(PROMPTS, ROWS, SAMPLING, KEY, often)
    traces = engine(model).rollout(groups(), SAMPLING, KEY)
    kinds = set()
    for group, sampled in zip(samples, traces, strict=True):
        for sample, ids, closed in zip(group, sampled.ids, sampled.closed, strict=True):
            kinds.add(sample.stopped)
            assert closed is (sample.stopped == "closed")
            expected = sample.ids[:-1] if sample.stopped == "ended" else sample.ids
            assert ids == expected
            assert all(often([i]) is None for i in (ids[:-1] if closed else ids))
        assert sampled.lengths == tuple(len(sample.ids) for sample in group)
    assert kinds >= {"closed", "ended"}


def test_limit_of_one_token_and_of_none():
    model = tiny.tiny_model("llama").eval()
    for traces in engine(model, never).rollout(groups(), replace(SAMPLING, max_tokens=1), KEY):
        assert traces.lengths == (1, 1, 1)
        assert traces.closed == (False,) * 3
    for traces in engine(model, never).rollout(groups(), replace(SAMPLING, max_tokens=0), KEY):
        assert traces.ids == ((), (), ())
        assert traces.closed == (False,) * 3


def test_no_prompts_give_no_traces():
    assert engine(tiny.tiny_model("llama")).rollout([], SAMPLING, KEY) == []


def test_sample_says_what_stopped_it():
    model = tiny.tiny_model("llama").eval()
    out = engine(model).sample(PROMPTS[:1], [0], replace(SAMPLING, max_tokens=1), KEY, never)
    assert all(isinstance(s, Sample) and s.stopped == "limit" for s in out[0])


# -- Mode and padding ------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_gradients_are_off_inside(training):
    model = tiny.tiny_model("gpt2").train(training)
    out = engine(model).rollout(groups(), SAMPLING, KEY)
    assert model.training is training
    assert torch.is_grad_enabled()
    assert out == engine(model.eval()).rollout(groups(), SAMPLING, KEY)  # no dropout in it
    model.train(training)

    def fail():
        with inference(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert model.training is training
    assert torch.is_grad_enabled()


def test_sampling_in_train_mode_with_activation_checkpointing_keeps_the_cache():
    model = tiny.tiny_model("llama")
    expected = engine(model).rollout(groups(), SAMPLING, KEY)
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert engine(model.train()).rollout(groups(), SAMPLING, KEY) == expected


def test_left_padding_and_positions_by_hand():
    ids, mask = left_pad([[5, 6, 7], [8], []], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 0]]
