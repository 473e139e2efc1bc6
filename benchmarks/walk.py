"""Which files of ours does a question pass from reading to its gradient?

``python benchmarks/walk.py`` trains one step on the embedded base and prints the files whose
functions run while rows are read, encoded, sampled, scored and trained on. Settings and records are
left out.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import native_reasoning
from native_reasoning.demo import base_path, make_rows
from native_reasoning.rollout import schedule
from native_reasoning.training import trainer
from native_reasoning.training.step import Step

SOURCE = Path(native_reasoning.__file__).parent
LEFT_OUT = ("config", "records", "cli")


def walk() -> set[str]:
    """The files, by their paths in the package."""
    passed: set[str] = set()

    def note(frame: FrameType, event: str, arg: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and path.is_relative_to(SOURCE):
            passed.add(str(path.relative_to(SOURCE)))

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            before = sys.getprofile()
            sys.setprofile(note)
            try:
                return call(*args, **kwargs)
            finally:
                sys.setprofile(before)

        return run

    schedule.load_examples = watched(schedule.load_examples)
    schedule.prepare = watched(schedule.prepare)
    Step.collect = watched(Step.collect)  # type: ignore[method-assign]
    trainer.NRTTrainer.training_step = watched(trainer.NRTTrainer.training_step)  # type: ignore
    with TemporaryDirectory() as place:
        rows = make_rows("short_answer", "train", 16, 1)
        data = Path(place, "train.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        config = native_reasoning.NRTConfig(
            output_dir=f"{place}/run",
            use_cpu=True,
            max_steps=1,
            num_generations=4,
            per_device_train_batch_size=4,
            max_trace_length=12,
            max_answer_length=16,
        )
        native_reasoning.NRTTrainer(str(base_path()), config, str(data)).train()
    return {path for path in passed if path.partition("/")[0] not in LEFT_OUT}


if __name__ == "__main__":
    found = sorted(walk())
    print("\n".join(found))
    print(len(found), "files")
