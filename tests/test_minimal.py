"""examples/minimal.py is the package's default preset: same loss, same gradient, same weights."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example, Traces
from native_reasoning.demo import base_path, make_rows
from native_reasoning.model.policy import load_policy
from native_reasoning.objective.credit import preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Scores
from native_reasoning.records.folder import read_metrics
from native_reasoning.rollout.engine import NoiseKey, Sampling
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.scoring.scorer import install_scoring, pack, unpack
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model

PATH = Path(__file__).parents[1] / "examples" / "minimal.py"
OBJECTIVE = preset_objective("nrt-ws")
#: Relative. Llama's norms stay float32 inside a float64 model; in float32 all through, R − R_base
#: loses digits, and A with it.
PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 5e-5)]


def load():
    spec = importlib.util.spec_from_file_location("minimal", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["minimal"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


minimal = load()


def stopping_model():
    """A random model that ends its turn, and so closes its trace, far more often than by chance:
    the closing tag's row starts as the end-of-turn token's."""
    model = tiny_model(seed=1)
    end = byte_tokenizer().convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        model.get_output_embeddings().weight[end] *= 4
    return model


def question(group):
    return minimal.Question(group.prompt_ids, group.answer_ids)


def as_sampled(traces):
    """The ids of each trace with whatever stopped it, which is what minimal's traces are."""
    return [(*ids, *(() if end is None else (end,))) for ids, end in traces.stops()]


def marks(template):
    return minimal.Marks(template.boundary.close_ids[0], template.end_ids, template.vocabulary)


def flat(parameters):
    return torch.cat([p.flatten() for p in parameters])


def gradient(model):
    return flat(p.grad for p in model.parameters())


# -- One group -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A policy and 64 traces of each of four questions, from the package's engine."""
    folder = str(tmp_path_factory.mktemp("run"))
    policy = load_policy(stopping_model(), NRTConfig(folder, use_cpu=True), byte_tokenizer())
    template = policy.template
    examples = [
        Example((("user", row["question"]),), row["answer"], row_id=i, line=i + 1)
        for i, row in enumerate(QA[:4])
    ]
    groups = [template.group(example) for example in examples]
    engine = HFEngine(policy.model, template.stop_trace, template.vocabulary)
    traces = engine.rollout(groups, Sampling(64, 6), NoiseKey(0, 0))
    install_scoring(policy.model)
    return policy.model, template, groups, traces


def select(traces, indices):
    ends = [end for _, end in traces.stops()]
    return Traces(
        tuple(traces.ids[i] for i in indices),
        tuple(traces.closed[i] for i in indices),
        tuple(ends[i] for i in indices),
    )


def of_each_kind(traces, template):
    """A closed, an empty, an ended, an empty ended and an open trace, in this order."""
    kinds = {}
    for i, (ids, end) in enumerate(traces.stops()):
        empty = ids in ((), template.empty_trace())
        kinds.setdefault((traces.closed[i], end is not None, empty), i)
    wanted = [(True, False, False), (True, False, True)]
    wanted += [(False, True, False), (False, True, True), (False, False, False)]
    return [kinds[kind] for kind in wanted]


def both(sampled, g, indices, dtype):
    """Loss and gradient of one group: of the package, then of minimal, and the package's signal."""
    model, template, groups, traces = sampled
    model.to(dtype).zero_grad()
    chosen = select(traces[g], indices)
    packed = pack([groups[g]], [chosen], template)
    (scores,) = unpack(packed, model(score=packed.batch), template, minimal.ROUNDING)
    signal = OBJECTIVE(scores)
    loss = group_loss(scores, signal, OBJECTIVE).total()
    loss.backward()
    expected = loss.item(), gradient(model)
    model.zero_grad()
    loss, rewards, base = minimal.question_loss(
        model, question(groups[g]), as_sampled(chosen), marks(template)
    )
    loss.backward()
    torch.testing.assert_close(rewards, signal.rewards, rtol=1e-4, atol=0)
    torch.testing.assert_close(base, signal.baseline_reward, rtol=1e-4, atol=0)
    return expected, (loss.item(), gradient(model)), signal


def assert_equal(expected, got, tolerance):
    print(
        "REL",
        tolerance,
        got[0] / expected[0] - 1,
        ((got[1] - expected[1]).norm() / expected[1].norm()).item(),
    )
    assert got[0] == pytest.approx(expected[0], rel=tolerance)
    assert (got[1] - expected[1]).norm() <= tolerance * expected[1].norm()


@pytest.mark.parametrize("g", range(4))
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_loss_and_gradient_are_the_packages(sampled, g, dtype, tolerance):
    _, template, _, traces = sampled
    expected, got, signal = both(sampled, g, of_each_kind(traces[g], template), dtype)
    assert not signal.flat
    assert (signal.advantages != 0).all()
    assert_equal(expected, got, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_flat_groups_too(sampled, dtype, tolerance):
    _, template, _, traces = sampled
    closed, empty, _, stopped, _ = of_each_kind(traces[0], template)
    for indices in ([closed] * 3, [empty] * 3, [stopped, empty, stopped]):
        expected, got, signal = both(sampled, 0, indices, dtype)
        assert signal.flat
        assert not signal.advantages.any()
        assert_equal(expected, got, tolerance)


@pytest.mark.parametrize(
    ("gain", "apart", "flat"),
    [
        (0.5, 1.0, False),
        (0.5, 1e-3, False),
        (0.5, 3e-6, True),
        (0.5, 0.0, True),
        (0.0, 1e-3, False),
        (0.0, 3e-6, True),
        (0.0, 0.0, True),
        (-0.5, 1.0, False),
        (-1.0, 1.0, True),
    ],
)
def test_advantages_are_the_packages_where_rewards_are_nearly_equal(gain, apart, flat):
    generator = torch.Generator().manual_seed(0)
    b = -torch.rand(5, generator=generator, dtype=torch.float64)
    b[0] = 0.0  # a certain token: its weight is clamped
    l = b + gain + apart * torch.rand(6, 5, generator=generator, dtype=torch.float64)
    none, yes = l.new_zeros(6, 1), torch.ones(6, 1, dtype=torch.bool)
    scores = Scores(none, yes, l, b, none[:, 0], yes[:, 0], rounding=minimal.ROUNDING)
    signal = OBJECTIVE(scores)
    got = minimal.advantages(minimal.reward(l, b), minimal.reward(b, b))
    torch.testing.assert_close(got, signal.advantages, rtol=1e-9, atol=0)
    assert signal.flat == flat


def test_the_decision_to_end_the_turn_has_a_policy_gradient(sampled):
    model, template, groups, traces = sampled
    model.to(torch.float64)
    q, m = question(groups[0]), marks(template)
    with torch.no_grad():
        for trace in as_sampled(select(traces[0], of_each_kind(traces[0], template))):
            row = torch.tensor([q.prompt + trace])
            logps = model(input_ids=row).logits[0, :, : m.vocabulary].log_softmax(-1)
            at = range(len(q.prompt) - 1, row.shape[1] - 1)
            trace_logp, tag_logp, _ = minimal.score(model, q, trace, m)
            assert trace_logp.item() == pytest.approx(logps[at, trace].sum().item())
            assert (tag_logp == 0) == (trace[-1] == m.close)


# -- Three steps of the trainer --------------------------------------------------------------------


def trained(folder, model):
    """The package's trainer after three steps, and the traces that each of them learnt from."""
    args = NRTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_generations=6,
        max_trace_length=5,
        max_steps=3,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_epsilon=1e-8,
        max_grad_norm=0,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = NRTTrainer(model, args, QA, None, byte_tokenizer())
    rollouts, rollout = [], trainer.forwards.engine.rollout

    def keep(groups, sampling, key):
        rollouts.append((groups, rollout(groups, sampling, key)))
        return rollouts[-1][1]

    trainer.forwards.engine.rollout = keep
    before = flat(trainer.model.parameters()).detach().clone()
    trainer.train()
    return trainer, rollouts, before


def test_three_steps_give_the_trainers_weights(tmp_path):
    trainer, rollouts, before = trained(tmp_path / "run", stopping_model())
    template, args, metrics = trainer.template, trainer.args, read_metrics(tmp_path / "run")
    model = load_policy(stopping_model(), args, byte_tokenizer()).model
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas, 1e-8, weight_decay=0.0)
    assert torch.equal(flat(model.parameters()), before)
    assert len(rollouts) == 3
    for (groups, traces), m in zip(rollouts, metrics, strict=True):
        questions, ids = [question(g) for g in groups], [as_sampled(t) for t in traces]
        mean, base = minimal.step(model, optimizer, questions, ids, marks(template))
        assert mean == pytest.approx(m["reward"], rel=1e-3)
        assert base == pytest.approx(m["reward_baseline"], rel=1e-3)
        assert gradient(model).norm().item() == pytest.approx(m["grad_norm"], rel=1e-3)
    kinds = {
        (closed, end is not None)
        for _, groups_traces in rollouts
        for traces in groups_traces
        for closed, end in zip(traces.closed, traces.ended, strict=True)
    }
    assert kinds == {(True, False), (False, True), (False, False)}
    assert any(m["flat_groups"] for m in metrics)
    assert any(m["empty"] for m in metrics)
    there, here = flat(trainer.model.parameters()), flat(model.parameters())
    assert (there - here).norm() <= 1e-3 * (there - before).norm()


# -- The file --------------------------------------------------------------------------------------


def test_it_is_short_and_needs_torch_and_transformers_only():
    text = PATH.read_text(encoding="utf-8")
    assert text.count("\n") < 200
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 30, node.name
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            root = name.split(".")[0]
            assert root in {"torch", "transformers"} or root in sys.stdlib_module_names
        if isinstance(node, ast.Call):
            assert getattr(node.func, "attr", None) != "import_module"


def test_its_questions_are_the_labs_in_ids_too(tmp_path):
    policy = load_policy(base_path(), NRTConfig(str(tmp_path), use_cpu=True))
    template, m = policy.template, marks(policy.template)
    assert base_path() == minimal.BASE
    assert m.ends == (policy.tokenizer.eos_token_id,)
    assert m.vocabulary == len(policy.tokenizer)
    assert m.close == policy.tokenizer.convert_tokens_to_ids("</think>")
    for split in ("train", "heldout"):
        answers = {r["question"]: r["answer"] for r in make_rows("style_shift", split, 9000, 0)}
        rows = minimal.make_rows(200, split == "heldout", seed=1)
        known = [(q, a) for q, a in rows if q in answers]
        assert len(known) > 5
        assert all(answers[q] == a for q, a in known)
        example = Example((("user", rows[0][0]),), rows[0][1], row_id=0, line=1)
        assert minimal.encode(policy.tokenizer, *rows[0], m.ends[0]) == question(
            template.group(example)
        )
