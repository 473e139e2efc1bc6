"""Local files of the nine benchmarks with a few rows of our own making."""

import json
from pathlib import Path


def write(folder: Path, name: str, rows) -> None:
    """One JSONL file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _mmlu(subject: str, n: int, shift: int = 0) -> list[dict]:
    return [
        {
            "subject": subject,
            "question": f"Which letter stands for {i + shift}?",
            "choices": [f"letter {i + c}" for c in range(4)],
            "answer": i % 4,
        }
        for i in range(n)
    ]


def _drop(n: int) -> dict:
    nowhen = {"day": "", "month": "", "year": ""}
    spans = [[str(n)], [f"{n} cats"]]
    return {
        "query_id": str(n),
        "passage": f"Here are {n} cats, 2 dogs.",
        "question": "How many cats?",
        "answer": {"number": "", "date": nowhen, "spans": spans[0]},
        "validated_answers": {"number": ["", ""], "date": [nowhen, nowhen], "spans": spans},
    }


def write_all(folder: Path) -> Path:
    """The nine benchmarks: three questions each, bbh and mmlu from two subjects."""
    logic = [{"input": "True and not False is", "target": "True"}] * 2
    words = "Sort the following words alphabetically: List: b a"
    write(folder, "bbh/boolean_expressions/test.jsonl", logic)
    write(folder, "bbh/word_sorting/test.jsonl", [{"input": words, "target": "a b"}] * 2)
    for subject, shift in (("anatomy", 0), ("astronomy", 7)):
        write(folder, f"mmlu/{subject}/test.jsonl", _mmlu(subject, 2, shift))
        write(folder, f"mmlu/{subject}/dev.jsonl", _mmlu(subject, 5, 20 + shift))
    write(folder, "drop/validation.jsonl", [_drop(n) for n in (3, 4, 5)])
    popqa = [
        {"question": f"What is town {i}'s country?", "possible_answers": f'["Land {i}", "L{i}"]'}
        for i in range(3)
    ]
    write(folder, "popqa/test.jsonl", popqa)
    truthful = [
        {
            "question": f"What happens on day {i}?",
            "mc1_targets": {"choices": ["Nothing.", "Rain falls up."], "labels": [1, 0]},
            "mc2_targets": {"choices": ["Nothing.", "It ends.", "Rain."], "labels": [1, 1, 0]},
        }
        for i in range(3)
    ]
    write(folder, "truthfulqa/validation.jsonl", truthful)
    sums = [
        {"question": f"What is {i} and {i}?", "answer": f"It is {i}+{i}.\n#### {2 * i}"}
        for i in range(9)
    ]
    write(folder, "gsm8k/train.jsonl", sums[3:])
    write(folder, "gsm8k/test.jsonl", sums[:3])
    problems = [
        {"problem": f"Find ${i}+1$.", "solution": rf"It is $\boxed{{{i + 1}}}$.", "answer": f"{i}"}
        for i in range(3)
    ]
    write(folder, "math/test.jsonl", problems)
    code = [
        {
            "task_id": f"Own/{i}",
            "prompt": f'def f{i}(x):\n    """Adds {i}."""\n',
            "entry_point": f"f{i}",
            "test": f"def check(f):\n    assert f(1) == {i + 1}\n",
        }
        for i in range(3)
    ]
    write(folder, "humaneval/test.jsonl", code)
    rules = [
        ("punctuation:no_comma", {}),
        ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}),
        ("keywords:existence", {"keywords": ["red", "blue"]}),
    ]
    asked = [
        {"key": i, "prompt": f"Write {i}.", "instruction_id_list": [name], "kwargs": [values]}
        for i, (name, values) in enumerate(rules)
    ]
    write(folder, "ifeval/train.jsonl", asked)
    return folder


def write_punkt(folder: Path) -> Path:
    """What nltk's sentence tokenizer reads, without its lists of abbreviations."""
    english = folder / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (english / name).touch()
    return folder
