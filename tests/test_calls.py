"""The trainer as people call transformers' own: keywords, kinds of data, predictions."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainingArguments

from cli_helpers import write_rows
from native_reasoning.cli import main
from native_reasoning.config.errors import ConfigError, DataError, NativeReasoningError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.folder import read_config, read_metrics
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model
from watchers import Gradients

SETTINGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_generations": 2,
    "eval_num_generations": 2,
    "max_trace_length": 4,
    "max_answer_length": 8,
    "max_steps": 1,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "weight_decay": 0,
    "save_strategy": "no",
    "use_cpu": True,
}


@pytest.fixture
def nrt_model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def make(folder, model=None, train=QA, held_out=None, others=None, **settings) -> NRTTrainer:
    args = NRTConfig(output_dir=str(folder), **{**SETTINGS, **settings})
    model = model or tiny_model()
    return NRTTrainer(model, args, train, held_out, byte_tokenizer(), **(others or {}))


def three_lines(error: NativeReasoningError) -> str:
    assert [line.split(":")[0] for line in str(error).splitlines()[1:]] == ["  why", "  fix"]
    return str(error)


# -- Optimizers ------------------------------------------------------------------------------------


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("given", ["optimizers", "optimizer_cls_and_kwargs"])
def test_an_optimizer_of_the_callers_own_makes_the_update(given, tmp_path):
    model, gradients = tiny_model(), Gradients()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    half = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.5)
    values = {
        "optimizers": (sgd, half),
        "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.25}),
    }
    trainer = make(tmp_path, model, others={given: values[given], "callbacks": [gradients]})
    before = flat(model)
    trainer.train()
    assert gradients.seen[0].norm() > 0
    assert torch.allclose(flat(model), before - 0.25 * gradients.seen[0], atol=1e-7)
    told = read_config(tmp_path)["config"]["optimizers"]
    assert told == (["SGD", "LambdaLR"] if given == "optimizers" else ["SGD", {"lr": 0.25}])


def test_an_optimizer_of_parameters_that_were_replaced_is_refused(tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(330, mean_resizing=False)  # no rows for the think tokens
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(ConfigError, match="SGD holds parameters") as caught:
        make(tmp_path, model, others={"optimizers": (sgd, None)})
    assert "optimizer_cls_and_kwargs" in three_lines(caught.value)


def test_a_run_with_an_optimizer_of_its_own_goes_on_and_is_asked(tmp_path, capsys):
    def trained(folder, resume=None, **settings):
        model = tiny_model()
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        trainer = make(
            folder,
            model,
            others={"optimizers": (sgd, None)},
            save_strategy="steps",
            save_steps=1,
            **settings,
        )
        trainer.train(resume)
        return trainer

    whole = trained(tmp_path / "whole", max_steps=3)
    trained(tmp_path / "run", max_steps=1)
    went_on = trained(tmp_path / "run", True, max_steps=3)
    assert torch.equal(flat(went_on.model), flat(whole.model))
    went_on.save_model(str(tmp_path / "run" / "final"))
    data = write_rows(tmp_path / "test.jsonl", QA[:2])
    assert main(["eval", str(tmp_path / "run"), "--data", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 2


# -- What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "what", "fix"),
    [
        ({"tokenizer": 1}, "no tokenizer", "processing_class="),
        ({"model_init": tiny_model}, "no model_init", "owner/name"),
        ({"data_collator": print}, "no data_collator", "chat_template_path"),
        ({"compute_loss_func": print}, "no compute_loss_func", "objective="),
        ({"preprocess_logits_for_metrics": print}, "no preprocess", "compute_metrics="),
    ],
)
def test_keywords_that_do_nothing_here_say_what_does(others, what, fix, tmp_path):
    with pytest.raises(ConfigError, match=what) as caught:
        make(tmp_path, others=others)
    assert fix in three_lines(caught.value)
    assert make(tmp_path, others={"data_collator": None, "optimizers": None}).optimizer is None


def test_a_trainer_without_model_or_settings_says_what_they_are(tmp_path):
    with pytest.raises(ConfigError, match="no args") as caught:
        NRTTrainer(tiny_model())
    assert "NRTConfig(output_dir=" in three_lines(caught.value)
    with pytest.raises(ConfigError, match="no model$|no model\n"):
        NRTTrainer(args=NRTConfig(output_dir=str(tmp_path), use_cpu=True))


def test_a_search_says_what_to_do_instead(tmp_path):
    with pytest.raises(ConfigError, match="no hyperparameter_search") as caught:
        make(tmp_path).hyperparameter_search(n_trials=2)
    assert "NRTConfig(output_dir=" in three_lines(caught.value)


def test_a_trainer_with_settings_of_transformers_says_whose_they_are(tmp_path):
    plain = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigError, match="a TrainingArguments as args") as caught:
        NRTTrainer(tiny_model(), plain, QA)
    assert "NRTConfig(output_dir=" in three_lines(caught.value)
    with pytest.raises(TypeError, match="reward_func"):
        make(tmp_path, others={"reward_func": print})


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"eval_strategy": "steps"}, "without eval_dataset"),
        ({"eval_on_start": True}, "without eval_dataset"),
        ({"metric_for_best_model": "acuracy"}, "'acuracy' (did you mean 'accuracy'?)"),
        ({"metric_for_best_model": "eval_uplfit"}, "'eval_uplfit' (did you mean 'uplift'?)"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
            "metric_for_best_model is 'loss'",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_anything_is_trained(
    settings, what, tmp_path
):
    held_out = QA[:2] if "metric" in what else None
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, held_out=held_out, **settings)
    assert what in three_lines(caught.value)


ENDS = ("", "_low", "_high")


def test_the_metrics_that_may_choose_the_best_model_are_those_of_an_evaluation(tmp_path):
    words = [{"question": "Who?", "answer": "she"}, {"question": "Why?", "answer": "because"}]
    for rows, traces in ((QA[:2], 1), (QA[:2], 2), (words, 2)):
        trainer = make(tmp_path, held_out=rows, eval_num_generations=traces)
        expected = {f"eval_{name}" for name in trainer.evaluator.names()}
        found = set(trainer.evaluate()) - {"eval_max_answer_length"}
        lacking = {"accuracy_maj", "pass_at_k"} if traces == 1 else set()
        lacking |= {"numeric_match"} if rows is words else set()
        assert expected - found == {f"eval_{n}{end}" for n in lacking for end in ENDS}
        assert found <= expected
    sets = make(tmp_path, held_out={"a": QA[:2], "b": QA[2:4]}, eval_num_generations=2)
    lengths = {"eval_a_max_answer_length", "eval_b_max_answer_length"}
    assert {f"eval_{name}" for name in sets.evaluator.names()} | lengths == set(sets.evaluate())
    with pytest.raises(ConfigError, match="a_accuracy"):
        make(tmp_path, held_out={"a": QA[:2]}, metric_for_best_model="accuracy")


# -- Metrics and predictions -----------------------------------------------------------------------


def test_metrics_of_the_callers_own_are_added(tmp_path):
    seen = []

    def compute_metrics(given):
        seen.append(given)
        right = given.predictions == given.label_ids  # arrays of text
        return {"accuracy": 0.25, "share": right.mean(), "eval_items": np.int64(len(right))}

    trainer = make(
        tmp_path,
        held_out=QA[:3],
        others={"compute_metrics": compute_metrics},
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="share",
    )
    trainer.train()
    (line,) = (m for m in read_metrics(tmp_path) if "eval_share" in m)
    assert (line["eval_accuracy"], line["eval_items"]) == (0.25, 6)
    assert "eval_accuracy_low" not in line  # ours, which another one took the place of
    assert line["eval_share"] == line["eval_exact_match"]
    assert [*seen[0].label_ids] == [row["answer"] for row in QA[:3] for _ in range(2)]
    assert [*seen[0].inputs] == [row["question"] for row in QA[:3] for _ in range(2)]
    assert trainer.state.best_metric == line["eval_share"]
    trainer.compute_metrics = lambda given: 0.5
    with pytest.raises(ConfigError, match="compute_metrics returned a float"):
        trainer.evaluate()


def test_predictions_are_traces_and_answers(tmp_path, capsys):
    trainer = make(tmp_path)
    rows = pd.DataFrame([*QA[:3], {"question": "and without an answer?", "answer": None}])
    predictions, references, metrics = trainer.predict(rows)
    assert "null: the row has no value" in capsys.readouterr().err
    assert references == [row["answer"] for row in QA[:3]]
    evaluated = trainer.evaluate(QA[:3])
    assert metrics == {f"test_{name[5:]}": value for name, value in evaluated.items()}
    model, template = trainer.model.eval(), trainer.template
    for outcome, group in zip(predictions, trainer.train_groups, strict=False):
        assert outcome.question == group.example.question
        assert len(outcome.traces) == len(outcome.answers) == 2
        prompt = template.answer_prompt(group.prompt_ids, template.empty_trace(), True)
        made = model.generate(  # transformers' own
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            top_k=None,
            top_p=None,
            temperature=None,
            max_new_tokens=8,
            suppress_tokens=list(range(template.vocabulary, 352)),
        )
        text = trainer.processing_class.decode(made[0, len(prompt) :], skip_special_tokens=True)
        assert outcome.answer_no_think_greedy == text.strip()


# -- Kinds of data ---------------------------------------------------------------------------------


def test_a_frame_is_read_as_its_rows(tmp_path):
    frame = pd.DataFrame(QA, index=range(7, 7 + len(QA)))
    given, plain = make(tmp_path, train=frame), make(tmp_path)
    assert [*given.train_groups] == [*plain.train_groups]


def test_a_run_from_paths_goes_on_from_the_command_line(tmp_path, nrt_model, capsys):
    data, held_out = (write_rows(tmp_path / f"{n}.jsonl", QA[:n]) for n in (4, 2))
    args = NRTConfig(output_dir=str(tmp_path / "run"), **{**SETTINGS, "save_strategy": "steps"})
    NRTTrainer(nrt_model, args, data, held_out).train()
    config = read_config(tmp_path / "run")["config"]
    assert (config["model"], config["data"], config["eval_data"]) == (nrt_model, data, held_out)
    assert main(["train", "--out", str(tmp_path / "run"), "--resume", "--max-steps", "2"]) == 0
    assert [m["step"] for m in read_metrics(tmp_path / "run") if "loss" in m] == [1, 2]
    make(tmp_path / "rows").train()
    assert read_config(tmp_path / "rows")["config"]["data"] is None


def test_of_a_dataset_dict_the_split_that_is_taken_is_told(tmp_path, capsys):
    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(QA[:6]), "test": datasets.Dataset.from_list(QA[6:])}
    )
    trainer = make(tmp_path, train=splits)
    assert len(trainer.train_groups) == 6
    assert "the rows are those of" in (told := capsys.readouterr().err)
    assert "[train]" in told
    make(tmp_path)
    assert "the rows are those of" not in capsys.readouterr().err
    two = datasets.DatasetDict({"dev": splits["train"], "test": splits["test"]})
    with pytest.raises(DataError, match="several splits and none is train: dev, test") as caught:
        make(tmp_path, train=two)
    assert "data['dev']" in three_lines(caught.value)
    assert [*make(tmp_path, held_out=two).evaluator.sets] == ["_dev", "_test"]


def test_sets_by_name_are_evaluated_one_by_one(tmp_path):
    sets = {"small": QA[:2], "frame": pd.DataFrame(QA[4:7])}
    trainer = make(
        tmp_path,
        held_out=sets,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="frame_answer_logp",
    )
    trainer.train()
    lines = [m for m in read_metrics(tmp_path) if "eval_frame_answer_logp" in m]
    assert [m["step"] for m in lines] == [1, 2]
    assert trainer.state.best_metric == max(m["eval_frame_answer_logp"] for m in lines)
    found = trainer.evaluate()
    for name, rows in sets.items():
        alone = trainer.evaluate(rows)
        one = {key: x for key, x in found.items() if key.startswith(f"eval_{name}_")}
        assert one == {f"eval_{name}_{key[5:]}": x for key, x in alone.items()}
    assert trainer.evaluate(sets) == found


def test_a_torch_dataset_says_how_it_is_given(tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(QA)

        def __getitem__(self, i):
            return QA[i]

    with pytest.raises(DataError, match="Rows cannot be read as rows") as caught:
        make(tmp_path, train=Rows())
    assert "[data[i] for i in range(len(data))]" in three_lines(caught.value)
