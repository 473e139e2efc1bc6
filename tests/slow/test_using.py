"""A saved folder in the hands of others: transformers' pipeline, and ``transformers serve``."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest
from transformers import pipeline

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example
from native_reasoning.demo import base_path
from native_reasoning.model.policy import load_policy, load_tokenizer

QUESTION = "tell 1 2 3 4 5"
TURNS = [
    {"role": "user", "content": "tell 5 4 3 2 1"},
    {"role": "assistant", "content": "dear friend", "reasoning_content": "5 9 2 4 5"},
    {"role": "user", "content": QUESTION},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The embedded base model, whose turns now end with a token that is not EOS: the folder that
    we saved, and the template that training would use."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    settings = NRTConfig(output_dir=str(folder.parent), use_cpu=True)
    tokenizer = load_tokenizer(str(base_path()), settings)
    tokenizer.eos_token = tokenizer.unk_token
    policy = load_policy(str(base_path()), settings, tokenizer)
    policy.save(folder)
    return folder, policy.template


def prompt(template, *turns):
    turns = tuple((turn["role"], turn["content"]) for turn in turns)
    return template.prompt_ids(Example(prompt=turns, answer="6", row_id=0, line=1))


# -- The pipeline ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(saved):
    return pipeline("text-generation", model=str(saved[0]), device="cpu")


def test_a_pipeline_returns_reasoning_and_answer(generator, saved):
    (made,) = generator([TURNS[-1]], max_new_tokens=60, do_sample=False)
    said = made["generated_text"][-1]
    assert said["role"] == "assistant"
    assert len(said["reasoning_content"].split()) > 1
    assert said["content"].startswith("dear ")
    assert not any(tag in str(said) for tag in ("<think>", "</think>", "<eos>"))


def test_a_conversation_goes_on_with_what_the_pipeline_returned(generator, saved):
    (made,) = generator([TURNS[0]], max_new_tokens=60, do_sample=False)
    turns = [*made["generated_text"], TURNS[-1]]
    ids = generator.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    assert tuple(ids) == prompt(saved[1], *turns)
    assert turns[1]["reasoning_content"]
    assert generator.tokenizer.decode(ids).count("<think>") == 1


def test_a_pipeline_answers_without_thinking(generator):
    off = {"tokenizer_encode_kwargs": {"enable_thinking": False}}
    (made,) = generator([TURNS[-1]], max_new_tokens=60, do_sample=False, **off)
    said = made["generated_text"][-1]
    assert "reasoning_content" not in said
    assert said["content"].startswith("dear ")


def test_generation_goes_on_to_the_limit_where_only_eos_would_end_it(generator, saved):
    """That the turn's end stops it is the folder's doing."""
    end, eos = saved[1].end_ids
    assert eos == generator.tokenizer.eos_token_id != end
    asked = {"max_new_tokens": 40, "do_sample": False, "return_tensors": True}
    lengths = []
    for stop in (None, eos):
        given = {} if stop is None else {"eos_token_id": stop}
        (made,) = generator([TURNS[-1]], **asked, **given)
        lengths.append(len(made["generated_token_ids"]) - len(prompt(saved[1], TURNS[-1])))
    assert lengths[0] < lengths[1] == 40


# -- The server ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(saved):
    """Its address, and the model's name there."""
    missing = [name for name in ("fastapi", "openai", "uvicorn") if find_spec(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: they are in the test extra")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(saved[0])]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = open(saved[0].parent / "serve.log", "wb")  # noqa: SIM115
    process = subprocess.Popen(command, env={**os.environ, **offline}, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (saved[0].parent / "serve.log").read_text()
                time.sleep(0.5)
        yield address, str(saved[0])
    finally:
        process.kill()
        process.wait()
        log.close()


def ask(server, turns, **kwargs):
    """The answer to a chat request, as JSON or as streamed events."""
    address, model = server
    body = {"model": model, "messages": turns, "max_tokens": 60, "temperature": 0, **kwargs}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        text = answer.read().decode()
    if not kwargs.get("stream"):
        return json.loads(text)
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_server_stops_at_the_end_of_the_turn_and_splits(server, saved, generator):
    found = ask(server, [TURNS[-1]])
    (choice,) = found["choices"]
    assert choice["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] < 60
    (made,) = generator([TURNS[-1]], max_new_tokens=60, do_sample=False)
    said = made["generated_text"][-1]
    assert {name: choice["message"][name] for name in said} == said
    assert found["usage"]["prompt_tokens"] == len(prompt(saved[1], TURNS[-1]))


def test_a_server_streams_the_reasoning_and_then_the_answer(server):
    whole = ask(server, [TURNS[-1]])["choices"][0]["message"]
    events = ask(server, [TURNS[-1]], stream=True)
    deltas = [event["choices"][0]["delta"] for event in events]
    names = [name for delta in deltas for name in delta if name != "role"]
    assert names == sorted(names, reverse=True)  # reasoning_content before content
    for name in ("reasoning_content", "content"):
        assert names.count(name) > 3
        assert "".join(delta.get(name, "") for delta in deltas) == whole[name]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_server_is_asked_as_training_asks(server, saved):
    """Earlier reasoning is dropped, and "off" is the empty trace."""
    template = saved[1]
    expected = prompt(template, *TURNS)
    found = ask(server, TURNS)
    assert found["usage"]["prompt_tokens"] == len(expected)
    off = ask(server, TURNS, chat_template_kwargs={"enable_thinking": False})
    empty = template.answer_prompt(expected, template.empty_trace(), True)
    assert off["usage"]["prompt_tokens"] == len(empty)
    message = off["choices"][0]["message"]
    assert "reasoning_content" not in message
    assert message["content"].startswith("dear ")
