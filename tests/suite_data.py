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
            **{f"choice{c}": f"letter {i + c}" for c in range(4)},
            "answer": str(i % 4),
        }
        for i in range(n)
    ]


def write_all(folder: Path) -> Path:
    """The nine benchmarks: three questions each, bbh and mmlu from two subjects."""
    bbh = [("boolean_expressions", "True and not False is", "True")] * 2
    bbh += [("word_sorting", "Sort the following words alphabetically: List: b a", "a b")] * 2
    write(folder, "bbh/test.jsonl", [{"task": t, "input": i, "target": y} for t, i, y in bbh])
    mmlu = [*_mmlu("anatomy", 2), *_mmlu("astronomy", 2, 7)]
    write(folder, "mmlu/test.jsonl", mmlu)
    write(folder, "mmlu/dev.jsonl", [*_mmlu("anatomy", 5, 20), *_mmlu("astronomy", 5, 30)])
    drop = [
        {
            "context": f"Passage: Here are {n} cats, 2 dogs.\nQuestion: How many cats?\nAnswer:",
            "completion": f" {n}",
            "ref_text": f"{n}|{n} cats",
        }
        for n in (3, 4, 5)
    ]
    write(folder, "drop/dev.jsonl", drop)
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
    write(folder, "truthfulqa/mc.jsonl", truthful)
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
    write(folder, "math/math500_test.jsonl", problems)
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
    write(folder, "ifeval/test.jsonl", asked)
    return folder
