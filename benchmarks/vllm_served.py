"""Does a vLLM server split what a saved model says? In an environment that has vLLM:
``python benchmarks/vllm_served.py FOLDER [QUESTION ...]``; ``make vllm-check`` trains a folder.

The server gets ``--reasoning-parser deepseek_r1`` and nothing of this package. Greedy answers,
whole and streamed, are compared with transformers' greedy tokens from the same folder: the same
prompt, the thinking apart from the answer, no tag and no end-of-turn token in either, and an end at
the end-of-turn token. What is asked must get a thought, an answer and an end, or nothing would be
checked. Prints JSON; exits with 1 where something differs.
"""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

URL = "http://127.0.0.1:18765"
QUESTIONS = ("What is the capital of France?", "How many legs do two dogs have?")
#: Most tokens of an answer with its thinking.
LONGEST = 96


@contextmanager
def server(folder: str, *arguments: str) -> Iterator[None]:
    """A vLLM server with the model of ``folder`` at URL, until it is left."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1"]
    command += ["--port", URL.rpartition(":")[2], *arguments]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        for _ in range(240):
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(URL + "/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def split(folder: str, questions: Sequence[str]) -> dict[str, Any]:
    """What was checked; raises AssertionError with everything that differs."""
    wanted, context = expected(folder, questions)
    arguments = ["--reasoning-parser", "deepseek_r1", "--max-model-len", str(context)]
    wrong: list[str] = []
    with server(folder, *arguments):
        for question, one in wanted.items():
            for way, said in (("whole", plain(question)), ("streamed", streamed(question))):
                for name, value in one.items():
                    if said[name] != value:
                        wrong.append(f"{question!r} {way}: {name} {said[name]!r}, not {value!r}")
        off = plain(questions[0], chat_template_kwargs={"enable_thinking": False})
    assert not wrong, "\n".join(wrong)
    return {
        "questions": len(wanted),
        "thinking and answer apart, whole and streamed": True,
        "ends at the end of turn": True,
        "without thinking, the answer is in": "content" if off["answer"] else "reasoning",
    }


def expected(folder: str, questions: Sequence[str]) -> tuple[dict[str, dict[str, Any]], int]:
    """What a server should say to each question, by transformers' greedy tokens; and how many
    tokens of context that takes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from native_reasoning.data.template import make_template

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    template, context = make_template(tokenizer), 0
    begin, close = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    found: dict[str, dict[str, Any]] = {}
    for question in questions:
        messages = [{"role": "user", "content": question}]
        made = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        prompt = made["input_ids"][0].tolist()
        ends = [*template.end_ids]
        (out,) = model.generate(**made, max_new_tokens=LONGEST, do_sample=False, eos_token_id=ends)
        ids = out[len(prompt) :].tolist()
        place = ids.index(close) if close in ids else len(ids)
        thought, answer = [token for token in ids[:place] if token != begin], ids[place + 1 :]
        assert thought and len(answer) > 1 and answer[-1] in ends, (
            f"{question!r}: no thought, answer and end in {tokenizer.decode(ids)!r}"
        )
        found[question] = {
            "prompt": prompt,
            "thinking": tokenizer.decode(thought, skip_special_tokens=True).strip(),
            "answer": tokenizer.decode(answer, skip_special_tokens=True).strip(),
            "tokens": len(ids),
            "ended": "stop",
        }
        context = max(context, len(prompt) + LONGEST)
    return found, context


def plain(question: str, **more: Any) -> dict[str, Any]:
    """The server's answer."""
    said = json.loads(_ask(question, return_token_ids=True, **more).read())
    (choice,) = said["choices"]
    parts = _parts(choice["message"])
    return {
        "prompt": said["prompt_token_ids"],
        "thinking": parts[0].strip(),
        "answer": parts[1].strip(),
        "tokens": said["usage"]["completion_tokens"],
        "ended": choice["finish_reason"],
    }


def streamed(question: str) -> dict[str, Any]:
    """The same, put together from what the server sent bit by bit."""
    found: dict[str, Any] = {"thinking": "", "answer": "", "ended": None}
    more = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    for line in _ask(question, **more):
        text = line.decode().removeprefix("data: ").strip()
        if not text or text == "[DONE]":
            continue
        said = json.loads(text)
        if said.get("prompt_token_ids"):
            found["prompt"] = said["prompt_token_ids"]
        if said.get("usage"):
            found["tokens"] = said["usage"]["completion_tokens"]
        for choice in said["choices"]:
            thinking, answer = _parts(choice["delta"])
            found["thinking"] += thinking
            found["answer"] += answer
            found["ended"] = choice["finish_reason"] or found["ended"]
    return {k: v.strip() if k in ("thinking", "answer") else v for k, v in found.items()}


def _parts(message: dict[str, Any]) -> tuple[str, str]:
    """Thinking and answer; what vLLM calls the first has changed."""
    thinking = message.get("reasoning") or message.get("reasoning_content")
    return thinking or "", message.get("content") or ""


def _ask(question: str, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, **more}
    request = urllib.request.Request(
        URL + "/v1/chat/completions",
        json.dumps({"max_tokens": LONGEST, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=120)


if __name__ == "__main__":
    try:
        print(json.dumps(split(sys.argv[1], sys.argv[2:] or QUESTIONS)))
    except AssertionError as error:
        sys.exit(str(error))
