"""Every mistake of the user's gives three lines and exit code 2, and overwrites nothing."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from tokenizers.processors import TemplateProcessing
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from cli_helpers import SMALL, start, write_rows
from native_reasoning import cli
from native_reasoning.config.errors import ConfigError, DataError, PolicyError, RunError
from tiny import byte_tokenizer

BAD_FILES = {
    "empty": (b"", "is empty"),
    "not UTF-8": (b'{"question": "caf\xe9", "answer": "1"}\n' * 3, ""),
    "broken JSON": (b'{"question": \n' * 3, "not valid JSON"),
    "missing column": (b'{"question": "1?", "reply": "1"}\n' * 3, "column 'answer' not found"),
    "all answers null": (b'{"question": "1?", "answer": null}\n', "no value"),
    "all answers empty": (b'{"question": "1?", "answer": " "}\n', "empty answer"),
}


def _everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("verb", ["train", "check", "eval"])
def test_a_file_that_does_not_exist(verb, model, tmp_path, refuses):
    missing = str(tmp_path / "nothing.jsonl")
    out = tmp_path / "run"
    command = {
        "train": ["train", "--model", model, "--data", missing, "--out", out],
        "check": ["check", missing],
        "eval": ["eval", model, "--data", missing],
    }[verb]
    assert "does not exist" in refuses(*command)[0]
    assert not out.exists()


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(kind, model, tmp_path, refuses):
    content, message = BAD_FILES[kind]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    out = tmp_path / "run"
    assert message in refuses("train", "--model", model, "--data", path, "--out", out)[0]
    assert message in refuses("check", path)[0]
    assert not out.exists()


def test_a_broken_line_is_counted_and_training_goes_on(model, tmp_path, nrt):
    rows = [json.dumps({"question": f"{i}?", "answer": str(i)}) for i in range(9)]
    rows[6] = '{"question": '
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(rows))
    out = tmp_path / "run"
    code, _, err = nrt("train", "--model", model, "--data", path, "--out", out, *SMALL)
    assert code == 0
    assert "8 of 9 rows kept" in err
    assert "1 broken_json: the row is not valid JSON (line 7: " in err
    told = f"1 of 9 rows of {path} are not used; 1 of them because the row is not valid JSON"
    assert err.count(f"warning: {told}") == 1
    assert err.count("warning: <think> and </think> are new to this model") == 1


def test_rows_that_do_not_fit_are_a_warning_with_what_keeps_them(model, tmp_path, nrt):
    rows = [{"question": "word " * (40 * (i % 2)) + f"{i}?", "answer": str(i)} for i in range(8)]
    command = ["train", "--model", model, "--data", write_rows(tmp_path / "qa.jsonl", rows)]
    limit = ["--max-prompt-length", "60", "--format-warmup-steps", "1"]
    code, _, err = nrt(*command, "--out", tmp_path / "run", *SMALL, *limit)
    assert code == 0
    (warning,) = (line for line in err.splitlines() if "are not used" in line)
    assert warning.startswith("warning: ")
    assert "4 of 8 rows of " in warning
    assert "qa.jsonl are not used; 4 of them because" in warning
    assert "a prompt that is too long: raise --max-prompt-length" in warning


def test_prompts_without_the_token_that_the_tokenizer_begins_with(model, data, tmp_path, nrt):
    """Gemma's tokenizer puts <bos> before every text, and a template may forget it."""
    folder = shutil.copytree(model, tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    plain = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer.chat_template = plain
    tokenizer.save_pretrained(folder)
    told = "prompts do not begin with <|im_start|>, which the tokenizer puts before every text"
    command = ["train", "--model", folder, "--data", data, *SMALL]
    for run in (["check", data, "--model", folder], [*command, "--out", tmp_path / "without"]):
        code, out, err = nrt(*run)
        assert code == 0
        assert (out + err).count(told) == 1
        assert (
            "{{ bos_token }} at the start of the template: --chat-template-path FILE" in out + err
        )
    mended = tmp_path / "mended.jinja"
    mended.write_text("{{ bos_token }}" + plain)
    _, out, err = nrt(*command, "--out", tmp_path / "with", "--chat-template-path", mended)
    assert told not in out + err


def test_only_prompts_over_the_limit(model, data, tmp_path, refuses):
    out = tmp_path / "run"
    command = ["train", "--model", model, "--data", data, "--out", out]
    what, _, fix = refuses(*command, "--max-prompt-length", "3", *SMALL)
    assert "too long" in what
    assert "--max-prompt-length" in fix
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-generations", "1"], "num_generations is 1"),
        (["--preset", "nrt-w"], "did you mean 'nrt-ws'?"),
        (["--num-generation", "8"], "did you mean --num-generations?"),
        (["--clip", "none"], "did you mean --objective.clip?"),
        (["--objective.clp", "none"], "did you mean --objective.clip?"),
        (["--objective", "mine:fn"], "objective is 'mine:fn'"),
        (["--learning-rate", "fast"], "--learning-rate: invalid float value: 'fast'"),
        (["--per-device-train-batch-size", "0"], "per_device_train_batch_size is 0"),
        (["--objective.clip", "rely"], "did you mean 'relu'?"),
        (["--num-generations"], "--num-generations: expected one argument"),
        (["--dry-run=yes"], "--dry_run: ignored explicit argument 'yes'"),
        (["--optim", "nothing"], "nothing is not a valid OptimizerNames"),
        (["--report-to", "nothing", *SMALL], "nothing is not supported"),
        (["--report-to", "dvclive", *SMALL], "requires dvclive"),
        (["one.yaml", "two.yaml"], "unrecognized arguments"),
        (["--resume"], "holds no run"),
    ],
)
def test_bad_settings(flags, message, model, data, tmp_path, refuses):
    out = tmp_path / "run"
    command = ["train", "--model", model, "--data", data, "--out", out, *flags]
    assert message in refuses(*command)[0]
    assert not out.exists() or not any(out.iterdir())


def test_bad_recipes(model, data, tmp_path, refuses):
    recipe = tmp_path / "recipe.yaml"
    assert "does not exist" in refuses("train", recipe)[0]
    recipe.write_text(f"model: {model}\ndata: {data}\nnum_generation: 4\n")
    assert "did you mean 'num_generations'?" in refuses("train", recipe, "--out", tmp_path / "r")[0]
    recipe.write_text("- a list\n")
    assert "not settings" in refuses("train", recipe)[0]
    recipe.write_text(f"model: {model}\n")
    assert "no data was given" in refuses("train", recipe)[0]
    recipe.write_text(f"data: {data}\n")
    assert "no model was given" in refuses("train", recipe)[0]


def test_a_model_folder_without_weights(model, data, tmp_path, refuses):
    folder = tmp_path / "empty-model"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    out = tmp_path / "run"
    command = ["train", "--model", folder, "--data", data, "--out", out, *SMALL]
    assert "no causal language model could be loaded" in refuses(*command)[0]
    assert not out.exists()


def test_a_tokenizer_without_an_end_token(model, data, tmp_path, refuses):
    folder = tmp_path / "endless"
    shutil.copytree(model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {k: v for k, v in settings.items() if k not in ("eos_token", "pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink()
    out = tmp_path / "run"
    command = ["train", "--model", folder, "--data", data, "--out", out, *SMALL]
    assert "no end token" in refuses(*command)[0]
    assert not out.exists()


def test_an_existing_run_is_left_alone_and_refused_before_the_model_is_loaded(
    model, data, tmp_path, refuses
):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("config: {}\n")
    (out / "metrics.jsonl").write_text('{"step": 1}\n')
    before = _everything(out)
    what, _, fix = refuses("train", "--model", tmp_path / "no", "--data", data, "--out", out)
    assert "already holds a run" in what
    assert "--resume" in fix
    assert "run-2" in fix
    assert (
        "no checkpoint"
        in refuses("train", "--model", model, "--out", out, "--data", data, "--resume")[0]
    )
    assert "without a saved model" in refuses("eval", out, "--data", data)[0]
    assert _everything(out) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["trian"], "did you mean 'train'?"),
        (["presets", "nrt-w"], "did you mean 'nrt-ws'?"),
        (["presets", "--jsn"], "did you mean --json?"),
        (["demo", "--seed", "one"], "--seed: invalid int value: 'one'"),
        (["check"], "required: DATA"),
        (["eval", "somewhere"], "no data was given"),
        (["train", "--resume"], "--resume without --out"),
    ],
)
def test_bad_command_lines(command, message, refuses):
    assert message in refuses(*command)[0]


def test_exit_codes_of_the_process(tmp_path):
    process = start("trian", cwd=tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[0] == "error: unknown verb 'trian' (did you mean 'train'?)"
    assert len(err.splitlines()) == 3


def test_control_characters_do_not_reach_the_terminal(tmp_path, nrt):
    path = write_rows(tmp_path / "qa.jsonl", [{"question": "a\x1b[31m?", "answer": "b\x07"}])
    code, out, _ = nrt("check", path)
    assert code == 0
    assert "\x1b" not in out
    assert "\\x1b[31m" in out


def test_mistakes_of_ours_keep_their_traceback(monkeypatch, nrt):
    from native_reasoning.cli import show

    monkeypatch.setattr(show, "presets", lambda parsed: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        nrt("presets")


def test_ctrl_c_and_closed_pipes(monkeypatch, nrt, tmp_path):
    from native_reasoning.cli import show

    def interrupt(parsed):
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "presets", interrupt)
    assert nrt("presets")[0] == 130
    with start("presets", cwd=tmp_path) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 141
    assert err == ""


@pytest.mark.parametrize(
    ("kind", "cause", "told"),
    [
        (ConfigError, None, True),
        (DataError, None, True),
        (PolicyError, OSError("no such model"), True),
        (PolicyError, ConnectionError("no network"), False),
        (PolicyError, LocalEntryNotFoundError("the hub is away"), False),
        (PolicyError, HTTPError("no answer"), False),
        (RunError, None, False),
    ],
)
def test_torchs_agent_is_told_what_another_try_would_not_mend(
    kind, cause, told, tmp_path, monkeypatch, capsys
):
    def fails(arguments):
        try:
            if cause is not None:
                raise cause
        except (OSError, HTTPError):
            raise kind("it happened", why="so", fix="do") from None
        raise kind("it happened", why="so", fix="do")

    monkeypatch.setattr(cli, "_run", fails)
    for place in (tmp_path / "error.json", tmp_path / "no folder" / "error.json"):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place))
        assert cli.main(["train"]) == 2
        assert "error: it happened" in capsys.readouterr().err
    assert (tmp_path / "error.json").exists() is told
    if told:
        failure = ProcessFailure(0, 1, 2, str(tmp_path / "error.json"))  # as the agent reads it
        assert "it happened" in failure.message["message"]
