"""One packed forward against one plain forward per row of a second, untouched model."""

from dataclasses import replace

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM
from transformers.utils.import_utils import enable_tf32

import tiny
from native_reasoning.config.errors import PolicyError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.model.forward import shared_start
from native_reasoning.model.policy import disable_dropout
from native_reasoning.objective.types import Scores
from native_reasoning.scoring import head
from native_reasoning.scoring.capabilities import capabilities_of, trial_length
from native_reasoning.scoring.head import chosen_logps, direct_head
from native_reasoning.scoring.packing import LAYOUTS, cheapest, pack
from native_reasoning.scoring.scorer import install_scoring, unpack
from native_reasoning.training.trainer import NRTTrainer

KINDS = ["llama", "gpt2", "mistral", "qwen3"]
EXAMPLE = Example((("user", "?"),), "!", row_id=0, line=1)


def chatml():
    return make_template(tiny.byte_tokenizer())


def with_gap():
    tokenizer = tiny.byte_tokenizer(think=True)
    tokenizer.chat_template = tiny.QWEN3
    return make_template(tokenizer)


TEMPLATE, GAP = chatml(), with_gap()
TAG = TEMPLATE.boundary.close_ids[0]
TEXT = make_template(tiny.byte_tokenizer(), boundary="text")


def group(prompt, answer=(40, 41, 42)):
    return PromptGroup(EXAMPLE, tuple(prompt), (*answer, TEMPLATE.end_ids[0]))


#: prompts longer and shorter than Mistral's window of 8; traces closed, cut, empty, repeated
GROUPS = (
    group(range(50, 73)),
    group((90, 91, 92), (30,)),
    group(range(100, 112), (5, 6, 7, 8, 9, 10)),
)
TRACES = (
    Traces(((11, 12, 13, TAG), (14, 15), (TAG,), (14, 15), ()), (True, False, True, False, False)),
    Traces(((20, 21, 22, 23, 24, 25, 26, 27, 28, 29, TAG), (20,)), (True, False)),
    Traces(((33, TAG), (TAG,)), (True, True)),
)


def models(kind, **config):
    """One model that scores and the same weights in one that was never touched."""
    scoring, plain = tiny.tiny_model(kind, **config), tiny.tiny_model(kind, **config)
    install_scoring(scoring)
    return scoring.eval(), plain.eval()


def run(model, groups=GROUPS, traces=TRACES, template=TEMPLATE, **options):
    packed = pack(groups, traces, template, **options)
    return unpack(packed, model(score=packed.batch), template)


def row_logps(model, ids, vocabulary, temperature=1.0):
    """log π of ids[1:] from a plain forward of one unpadded row: a list of scalars."""
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :, :vocabulary]
    logps = (logits / temperature).log_softmax(-1)
    return [logps[t, token] for t, token in enumerate(ids[1:])]


def expected(model, group, ids, closed, template, temperature=1.0):
    """(trace, answer, forced tag) of one trace as lists of scalars."""
    vocabulary = len(template.tokenizer)
    tag = () if closed else template.boundary.close_ids
    head = (*group.prompt_ids, *ids, *tag)
    row = (*head, *template.gap_ids, *group.answer_ids)
    warm = row_logps(model, row, vocabulary, temperature)
    plain = row_logps(model, row, vocabulary)
    p, n = len(group.prompt_ids), len(ids)
    return (
        warm[p - 1 : p - 1 + n],
        plain[len(row) - len(group.answer_ids) - 1 :],
        warm[p - 1 + n : len(head) - 1],
    )


def check(model, scores, groups=GROUPS, traces=TRACES, template=TEMPLATE, temperature=1.0):
    def same(one, other):
        other = torch.stack(other) if other else torch.zeros(0)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)

    with torch.no_grad():
        for got, g, sampled in zip(scores, groups, traces, strict=True):
            assert got.closed.tolist() == list(sampled.closed)
            empty = template.empty_trace()
            same(got.baseline, expected(model, g, empty, True, template)[1])
            for k, (ids, closed) in enumerate(zip(sampled.ids, sampled.closed, strict=True)):
                trace, answer, tag = expected(model, g, ids, closed, template, temperature)
                n = len(ids)
                assert got.trace_mask[k].tolist() == [t < n for t in range(max(sampled.lengths))]
                same(got.trace[k, :n], trace)
                assert (got.trace[k, n:] == 0).all()
                same(got.answer[k], answer)
                same(got.forced_tag[k][None], [sum(tag, torch.zeros(()))])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_plain_forwards_of_each_row_alone(kind, layout):
    model, plain = models(kind)
    with torch.no_grad():
        check(plain, run(model, layouts=(layout,)))


@pytest.mark.parametrize("template", [GAP, TEXT], ids=["gap", "text"])
def test_gap_is_forwarded_and_not_scored_and_long_tags_are_scored_whole(template):
    model, plain = models("llama")
    tag = template.boundary.close_ids
    traces = (Traces(((11, 12, *tag), (13,), tag, (14, 15, 16)), (True, False, True, False)),)
    assert template.gap_ids or len(tag) > 1
    for layout in LAYOUTS:
        with torch.no_grad():
            scores = run(model, GROUPS[:1], traces, template, layouts=(layout,))
        check(plain, scores, GROUPS[:1], traces, template)
        assert torch.equal(scores[0].answer[2], scores[0].baseline)


def test_text_tag_sampled_in_fewer_pieces_than_it_is_written_in():
    model, plain = models("llama")
    assert len(TEXT.boundary.close_ids) > 1
    traces = (Traces(((11,), (12, 13)), (True, False)),)
    with torch.no_grad():
        scores = run(model, GROUPS[:1], traces, TEXT)
    check(plain, scores, GROUPS[:1], traces, TEXT)


def test_the_length_of_a_text_tag_is_that_of_the_pieces_it_was_sampled_in():
    tag = TEXT.boundary.close_ids
    letters = [TEXT.tokenizer(c, add_special_tokens=False)["input_ids"] for c in "\nThe answer is"]
    apart = tuple(i for ids in letters for i in ids)
    assert len(apart) > len(tag)
    for written in (tag, apart):
        assert TEXT.stop_trace([11, 12, *written]) == "closed"
        assert TEXT.tag_length((11, 12, *written)) == len(written)
        assert TEXT.tag_length(written) == len(written)
    assert TEMPLATE.tag_length((11, TAG)) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("template", [TEMPLATE, GAP, TEXT], ids=["tag", "gap", "text"])
def test_sampled_answers_are_scored_behind_their_traces(template, temperature):
    """log π(z, ŷ): the trace, its tag and the answer that was sampled, all at the temperature."""
    model, plain = models("llama")
    tag, end = template.boundary.close_ids, template.end_ids[0]
    reference = GROUPS[0].answer_ids
    traces = Traces(
        ids=((11, 12, *tag), (13,), tag, (11, 12, *tag), (15,)),
        closed=(True, False, True, True, False),
        ended=(None, None, None, None, template.end_ids[-1]),
        answers=((60, 61, end), (), (62, 63, 64, 65), reference, ()),
    )
    for layout in LAYOUTS:
        with torch.no_grad():
            (got,) = run(
                model, GROUPS[:1], (traces,), template, layouts=(layout,), temperature=temperature
            )
            for k, (ids, closed) in enumerate(zip(traces.ids, traces.closed, strict=True)):
                answer = traces.answers[k]
                row = (*GROUPS[0].prompt_ids, *ids)
                warm = row_logps(plain, row, len(template.tokenizer), temperature)[-len(ids) :]
                if answer:
                    row = (*row, *template.gap_ids, *answer)
                    behind = row_logps(plain, row, len(template.tokenizer), temperature)
                    warm += behind[-len(answer) :]
                decided = traces.ended[k] is not None
                n = len(ids) + len(answer)
                assert got.trace_mask[k].sum() == n + decided
                torch.testing.assert_close(
                    got.trace[k, :n], torch.stack(warm), rtol=1e-5, atol=2e-5
                )
                want = expected(plain, GROUPS[0], ids, closed, template, temperature)
                torch.testing.assert_close(
                    got.answer[k], torch.stack(want[1]), rtol=1e-5, atol=2e-5
                )
        assert got.trace_length.tolist() == [2, 1, 0, 2, 1]
        assert got.answer_length.tolist() == [3, 0, 4, len(reference), 0]


def test_a_sampled_answer_that_is_the_reference_is_one_row_at_temperature_one():
    traces = (Traces(((11, TAG),), (True,), answers=(GROUPS[0].answer_ids,)),)
    assert len(pack(GROUPS[:1], traces, TEMPLATE).batch.suffix) == 2  # and the empty trace's
    assert len(pack(GROUPS[:1], traces, TEMPLATE, temperature=0.5).batch.suffix) == 3


def test_temperature_scales_traces_and_tags_and_not_answers():
    model, plain = models("llama")
    with torch.no_grad():
        scores = run(model, temperature=0.6)
        check(plain, scores, temperature=0.6)
        assert not torch.allclose(scores[0].trace, run(model)[0].trace)


def test_trace_log_probabilities_are_normalised_over_the_tokenizers_ids_alone():
    model, _ = models("llama")  # 352 rows, of which 333 mean something
    assert len(TEMPLATE.tokenizer) < model.config.vocab_size
    with torch.no_grad():
        before = run(model)[0]
        table = model.get_output_embeddings().weight
        table[len(TEMPLATE.tokenizer) :] = 50 * table[:1]
        after = run(model)[0]
    assert torch.equal(before.trace, after.trace)
    assert torch.equal(before.answer, after.answer)
    every = Traces(
        tuple((token,) for token in range(len(TEMPLATE.tokenizer))),
        (True,) * len(TEMPLATE.tokenizer),
    )
    with torch.no_grad():
        total = run(model, GROUPS[1:2], (every,))[0].trace.exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)


# -- Sharing ---------------------------------------------------------------------------------------


def objective(scores):
    """A fixed random linear function of everything that carries a gradient."""
    torch.manual_seed(1)
    return sum(
        (part * torch.randn(part.shape)).sum()
        for s in scores
        for part in (s.trace, s.answer, s.forced_tag)
    )


def gradient(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative(one, other):
    return ((one - other).norm() / other.norm()).item()


START = tuple(range(120, 140))
#: All prefixes begin with START; the second is START and nothing else.
BEGUN = (
    group((*START, *range(50, 73))),
    group((*START, 90), (30,)),
    group((*START, *range(100, 112)), (5, 6, 7, 8, 9, 10)),
)


@pytest.mark.parametrize(
    ("kind", "window"), [*[(k, 400) for k in (*KINDS, "gemma2")], ("mistral", 8)]
)
def test_what_all_prompts_begin_with_is_forwarded_once(kind, window, monkeypatch):
    config = {"sliding_window": window} if kind in ("mistral", "gemma2") else {}
    model, plain = models(kind, **config)
    widths, forward = [], type(model.base_model).forward

    def counted(*args, **kwargs):
        widths.append(tuple(kwargs["inputs_embeds"].shape[:2]))
        return forward(*args, **kwargs)

    with monkeypatch.context() as watched:
        watched.setattr(type(model.base_model), "forward", counted)
        scores = run(model, BEGUN, layouts=("shared",))
    # a layer with a window that is shorter than the rows would count padding
    assert widths[:-1] == ([(1, 19), (3, 23)] if window == 400 else [(3, 42)])
    with torch.no_grad():
        check(plain, scores, BEGUN)
    once = gradient(model, objective(scores))
    alone = gradient(model, objective(run(model, BEGUN, layouts=("rows",))))
    assert relative(once, alone) < 1e-5


def test_prompts_that_begin_alike_are_recognised():
    prompts = [group.prompt_ids[:-1] for group in BEGUN]
    assert shared_start(prompts) == len(START) - 1  # of each one is left to forward
    assert shared_start(prompts[:1]) == 0  # nothing is shared with nobody
    assert shared_start([START, START]) == len(START) - 1
    assert shared_start([p[:9] for p in prompts]) == 0  # too short to be worth it
    assert shared_start([p[5:] for p in prompts] + [(1, 2)]) == 0


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_give_the_gradients_of_plain_rows(kind, layout):
    model, plain = models(kind)
    shared = gradient(model, objective(run(model, layouts=(layout,))))
    alone = gradient(model, objective(run(model, layouts=("rows",))))
    assert relative(shared, alone) < 1e-5

    rows = []
    for g, sampled in zip(GROUPS, TRACES, strict=True):
        traces = zip(sampled.ids, sampled.closed, strict=True)
        parts = [expected(plain, g, ids, closed, TEMPLATE) for ids, closed in traces]
        zero, longest = torch.zeros(()), max(sampled.lengths)
        padded = [[*t, *[zero] * (longest - len(t))] for t, _, _ in parts]
        rows.append(
            Scores(
                trace=torch.stack([torch.stack(t) for t in padded]),
                trace_mask=torch.ones(0),
                answer=torch.stack([torch.stack(a) for _, a, _ in parts]),
                baseline=zero,
                forced_tag=torch.stack([sum(f, zero) for _, _, f in parts]),
                closed=torch.ones(0),
            )
        )
    assert relative(shared, gradient(plain, objective(rows))) < 1e-5


@pytest.mark.parametrize("layout", ["packed", "rows"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_activation_checkpointing_in_train_mode_gives_the_same_gradient(kind, layout):
    model, _ = models(kind)
    before = gradient(model, objective(run(model, layouts=("rows",))))
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert model.is_activation_checkpointing
    after = gradient(model, objective(run(model, layouts=(layout,))))
    assert relative(after, before) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_architectures_whose_cache_can_be_repeated_share_prompts(kind):
    model = models(kind)[0].train()
    able = capabilities_of(model, TEMPLATE)
    assert able.layouts == ("shared", "packed", "rows")
    assert able.share
    assert able.left_out == ()
    assert model.training


def test_layers_of_several_kinds_are_not_packed_under_one_mask():
    able = capabilities_of(models("gemma2")[0], TEMPLATE)
    assert able.layouts == ("shared", "rows")
    assert able.left_out == ("layout packed: NotImplementedError: layers of several kinds",)


def test_the_layout_with_the_least_work_is_taken():
    def layout(prompt, suffixes, hidden=256, allowed=LAYOUTS):
        return cheapest(allowed, [[1] * prompt], [(0, [1] * n) for n in suffixes], hidden)

    assert layout(512, [80] * 9) == "shared"
    assert layout(30, [6, 7, 5, 400]) == "packed"  # most of a padded batch would be padding
    assert layout(512, [80] * 9, allowed=("packed", "rows")) == "packed"
    assert layout(20, [4000] * 16, allowed=("packed", "rows")) == "rows"
    packed = pack(GROUPS, TRACES, TEMPLATE, layouts=LAYOUTS, hidden=32)
    assert (packed.batch.layout == "packed") == (packed.batch.long is not None)


def test_window_that_is_too_long_to_try_is_tried_with_a_short_prompt():
    model, _ = models("mistral", sliding_window=4096)
    seen = []
    hook = model.lm_head.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0][0]))
    )
    assert "shared" in capabilities_of(model, TEMPLATE).layouts
    hook.remove()
    assert max(seen) < 64


def test_architecture_whose_cache_cannot_be_repeated_scores_the_plain_way():
    model, plain = models("lfm2")
    able = capabilities_of(model, TEMPLATE)
    assert able.layouts == ("rows",)
    assert not able.share
    with torch.no_grad():
        check(plain, run(model, layouts=("rows",)))


def test_model_whose_shared_prompt_is_wrong_does_not_share():
    class Forgetful(type(tiny.tiny_model("llama").model)):
        def forward(self, *args, **kwargs):
            mask, given = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
            width = 0 if given is None else given.shape[1]
            if mask is not None and mask.shape[1] > width > 0:  # sees one prompt token
                kwargs["attention_mask"] = mask.clone()
                kwargs["attention_mask"][:, : mask.shape[1] - width] = 0
            return super().forward(*args, **kwargs)

    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.tiny_model("llama")
        model.model.__class__ = Forgetful
        install_scoring(model.to(dtype))
        assert "shared" not in capabilities_of(model, TEMPLATE).layouts


def test_a_model_that_checkpoints_activations_already_is_scored_with_its_prompts():
    model, plain = models("llama")
    disable_dropout(model)
    model.activation_checkpointing_enable()  # by the caller: no setting of ours says so
    able = capabilities_of(model, TEMPLATE, training=True)
    assert able.layouts == ("packed", "rows")
    assert any("layout shared in train mode" in line for line in able.left_out)
    for layout in able.layouts:
        scores = run(model.train(), layouts=(layout,))
        check(plain, scores)


def test_noise_that_reaches_the_scores_in_train_mode_is_refused():
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 352}
    torch.manual_seed(0)
    model = FalconForCausalLM(FalconConfig(**shape, hidden_dropout=0.5))
    disable_dropout(model)
    assert "rows" in capabilities_of(model, TEMPLATE, training=True).layouts
    model.activation_checkpointing_enable()  # its layers read the configuration in train mode
    with pytest.raises(PolicyError, match=r"cannot be scored: layout rows in train mode: .* nats"):
        capabilities_of(model, TEMPLATE, training=True)
    assert capabilities_of(model, TEMPLATE).layouts  # without training there is no noise


def test_a_run_that_checkpoints_activations_is_tried_so(tmp_path):
    """transformers switches it on when training begins, after the trial."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 352}
    for noise in (0.0, 0.5):
        torch.manual_seed(0)
        model = FalconForCausalLM(FalconConfig(**shape, hidden_dropout=noise))
        args = NRTConfig(output_dir=str(tmp_path), use_cpu=True, activation_checkpointing=True)
        if noise:
            with pytest.raises(PolicyError, match=r"in train mode: .* nats(.*\n)*.*checkpointing"):
                NRTTrainer(model, args, tiny.QA, None, tiny.byte_tokenizer())
        else:
            trainer = NRTTrainer(model, args, tiny.QA, None, tiny.byte_tokenizer())
            assert "shared" not in trainer.forwards.layouts
        assert not model.is_activation_checkpointing  # it is left as it was


def test_a_model_is_tried_after_tf32_was_switched_on():
    before = torch.backends.fp32_precision
    enable_tf32(True)
    try:
        assert "rows" in capabilities_of(tiny.tiny_model(), TEMPLATE).layouts
    finally:
        torch.backends.fp32_precision = before


def test_a_window_that_no_row_reaches_makes_no_long_trial():
    model = tiny.tiny_model("mistral", sliding_window=256)
    assert trial_length(model) == trial_length(model, longest=300) == 264
    assert trial_length(model, longest=200) == 16


def test_a_refusal_names_what_the_model_raised():
    model = tiny.tiny_model("llama")
    model.model.layers[1].mlp.double()
    with pytest.raises(PolicyError, match=r"cannot be forwarded: .* RuntimeError: .*dtype"):
        capabilities_of(model, TEMPLATE)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rounding_alone_does_not_forbid_sharing(kind):
    model, _ = models(kind)
    able = capabilities_of(model.to(torch.bfloat16), TEMPLATE)
    assert able.layouts == ("shared", "packed", "rows")
    assert able.share


# -- Invariance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_groups_padding_and_order_change_nothing(kind, layout):
    model, _ = models(kind)
    with torch.no_grad():
        together = run(model, layouts=(layout,))
        for chosen in ((2, 0, 1), (1, 0), (0,), (1,), (2,)):
            some = run(
                model, [GROUPS[i] for i in chosen], [TRACES[i] for i in chosen], layouts=(layout,)
            )
            for i, scores in zip(chosen, some, strict=True):
                for name in ("trace", "answer", "baseline", "forced_tag"):
                    one, other = getattr(scores, name), getattr(together[i], name)
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


def test_order_of_the_traces_changes_nothing_but_the_order():
    model, _ = models("llama")
    order = [3, 1, 4, 0, 2]
    t = TRACES[0]
    shuffled = Traces(tuple(t.ids[k] for k in order), tuple(t.closed[k] for k in order))
    with torch.no_grad():
        one, other = run(model)[0], run(model, GROUPS, (shuffled, *TRACES[1:]))[0]
    for name in ("trace", "answer", "forced_tag", "closed", "trace_mask"):
        torch.testing.assert_close(
            getattr(one, name)[order], getattr(other, name), atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_of_one_token_beside_a_long_one(kind):
    model, plain = models(kind)
    groups, traces = (group((77,)), GROUPS[0]), (TRACES[2], TRACES[0])
    for layout in LAYOUTS:
        with torch.no_grad():
            check(plain, run(model, groups, traces, layouts=(layout,)), groups, traces)
            check(
                plain, run(model, groups[:1], traces[:1], layouts=(layout,)), groups[:1], traces[:1]
            )


# -- Rows ------------------------------------------------------------------------------------------


def test_duplicates_and_empty_traces_share_a_row():
    packed = pack(GROUPS, TRACES, TEMPLATE)
    first = packed.row_of[0]  # empty; (11, 12, 13), (14, 15), empty, (14, 15), empty and cut
    assert first == (0, 1, 2, 0, 2, 0)
    assert len(packed.batch.suffix) == 3 + 3 + 2
    assert packed.batch.group_of_row.tolist() == [0] * 3 + [1] * 3 + [2] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_trace_gets_exactly_the_baseline(kind, layout):
    model, _ = models(kind)
    with torch.no_grad():
        scores = run(model, layouts=(layout,))[0]
    assert torch.equal(scores.answer[2], scores.baseline)
    assert torch.equal(scores.answer[4], scores.baseline)
    assert torch.equal(scores.answer[1], scores.answer[3])
    assert scores.trace[2, 0] == scores.forced_tag[4]  # sampled there, spliced in here
    assert not torch.equal(scores.answer[0], scores.baseline)


def test_traces_of_nothing_at_all_have_no_trace_term():
    model, plain = models("llama")
    traces = (Traces(((), ()), (False, False)),)
    with torch.no_grad():
        scores = run(model, GROUPS[:1], traces)
    assert scores[0].trace.shape == scores[0].trace_mask.shape == (2, 0)
    check(plain, scores, GROUPS[:1], traces)


def test_duplicate_rows_add_their_gradients():
    model, _ = models("llama")

    def grad(ids):
        traces = (Traces((ids,) * 2 if isinstance(ids[0], int) else ids, (False, False)),)
        scores = run(model, GROUPS[:1], traces)[0]
        return gradient(model, scores.trace.sum() + scores.answer[:, 1].sum())

    one, other = grad((14, 15)), grad((16, 17))
    assert relative(grad(((14, 15), (16, 17))), (one + other) / 2) < 1e-5


# -- The installed forward -------------------------------------------------------------------------


def test_other_calls_of_the_model_are_as_before():
    model, plain = models("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    wrapped = model.forward
    install_scoring(model)
    assert model.forward is wrapped or model.forward == wrapped  # installed once
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert torch.equal(model(ids, labels=ids).loss, plain(ids, labels=ids).loss)
    out = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(out, plain.generate(ids, max_new_tokens=4, do_sample=False))


def test_forward_that_fails_leaves_the_head_as_it_was():
    model, plain = models("llama")
    packed = pack(GROUPS, TRACES, TEMPLATE)
    bad = packed.batch.suffix.clone()
    bad[0, 0] = 10_000
    with pytest.raises(IndexError):
        model(score=replace(packed.batch, suffix=bad))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


#: trace, tag and answer of each distinct row of GROUPS and TRACES; not prompt, gap or padding
SCORED = (1 + 4) + (4 + 4) + (3 + 4) + (1 + 2) + (11 + 2) + (2 + 2) + (1 + 7) + (2 + 7)


def test_only_scored_positions_reach_the_vocabulary(monkeypatch):
    seen = []

    def watched(hidden, head, choice):
        seen.append(len(hidden))
        return chosen_logps(hidden, head, choice)

    monkeypatch.setattr(head, "chosen_logps", watched)
    model, _ = models("llama")
    model(score=pack(GROUPS, TRACES, GAP).batch)
    assert seen == [SCORED]


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_logits_that_are_more_than_a_product_come_out_of_the_models_own_forward(layout):
    model, plain = models("gemma2", final_logit_softcapping=2.0)
    assert not direct_head(model)
    seen = []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: seen.append(out.shape[:-1].numel())
    )
    with torch.no_grad():
        check(plain, run(model, layouts=(layout,)))
    assert seen == [SCORED]


@pytest.mark.parametrize(
    ("model_dtype", "out"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_log_probabilities_are_at_least_float32(model_dtype, out):
    model, _ = models("llama")
    with torch.no_grad():
        reference = run(model)[0]
        scores = run(model.to(model_dtype))[0]
    assert scores.answer.dtype == scores.trace.dtype == scores.forced_tag.dtype == out
    atol = 1.0 if model_dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(scores.answer.float(), reference.answer, atol=atol, rtol=0)


def test_rounding_is_handed_on():
    model, _ = models("llama")
    packed = pack(GROUPS, TRACES, TEMPLATE)
    with torch.no_grad():
        scores = unpack(packed, model(score=packed.batch), TEMPLATE, 5e-3)
    assert [s.rounding for s in scores] == [5e-3] * 3
