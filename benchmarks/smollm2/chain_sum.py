"""Sums of three signed digits as JSON lines: ``python benchmarks/smollm2/chain_sum.py N > FILE``.

Questions of reasoning-gym's ``chain_sum``, each once, in the order of its seed 0. Needs an
environment of its own: ``pip install reasoning-gym==0.1.25``.
"""

import json
import sys

import reasoning_gym


def main(count: int) -> None:
    """The first ``count`` different questions."""
    settings = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    made = reasoning_gym.create_dataset("chain_sum", size=2 * count, seed=0, **settings)
    rows = {item["question"]: str(item["answer"]) for item in made}
    for question, answer in [*rows.items()][:count]:
        print(json.dumps({"question": question, "answer": answer}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
