"""Pages that are written from the package's tables say what the package does."""

import ast
import importlib.util
import math
import re
import subprocess
import sys

import pytest

from doc_blocks import PAGES, ROOT
from native_reasoning.cli.flags import parse
from native_reasoning.cli.verbs import VERBS
from native_reasoning.config.methods import METHODS
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.papers import PRESETS
from native_reasoning.config.recipe import make_config
from native_reasoning.records.folder import read_metrics, read_timings
from native_reasoning.records.metrics import MEASURED, METRICS
from native_reasoning.rollout.schedule import make_schedule
from native_reasoning.scoring.diagnostics import BINS, Finding, summary
from native_reasoning.training.trainer import NRTTrainer
from test_architecture import ROOMS
from tiny import QA, byte_tokenizer, tiny_model

#: Prompts per optimiser step and updates per rollout of the authors' runs, of one device.
AUTHORS = {
    "nrt": (64, 4),
    "verifree": (16, 1),
    "jepo": (64, 1),
    "latro": (3, 1),
    "rlpr": (192, 4),
    "nover": (1, 1),
    "dro": (128, 1),
    "avg": (8, 1),
}
DOCS = ROOT / "docs"


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)  # dataclasses look there
        spec.loader.exec_module(module)
    return module


MADE = re.compile(r"<!-- made by docs/(\w+)\.py -->")


def test_every_part_that_is_made_where_the_site_is_built_can_be_made():
    names = [name for page in PAGES for name in MADE.findall(page.read_text("utf-8"))]
    assert sorted(names) == ["make_cli", "make_metrics", "make_objectives", "make_performance"]
    for name in names:
        assert "\n| --- |" in script(name).page()


def test_every_method_is_told_with_formula_source_forms_and_differences():
    made = script("make_objectives")
    for name, method in METHODS.items():
        text = made.method_text(name)
        assert text in made.page()
        assert method.source in text
        assert method.formula in text
        for key, preset in PRESETS.items():
            assert (f"## `{key}`" in text) == (preset.method is method)
        assert all(formula in text for formula in method.formulas.values())
        for told in (method.differs, *method.forms.values()):
            assert all(line in text for line in told)


def test_the_picture_is_what_the_model_says():
    module = script("make_picture")
    assert module.FILE.read_text("utf-8") == module.picture(module.ask()), (
        "python docs/make_picture.py draws it anew; look at it"
    )


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    found = []
    for title in re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        found.append("".join(c for c in plain if c.isalnum() or c in " -_").replace(" ", "-"))
    return found


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository_and_to_headings(page, tracked):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file in tracked, f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def tracked():
    """Files and folders of the repository, without what git ignores."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:  # a source archive
        return {*ROOT.rglob("*")}
    files = {ROOT / name for name in done.stdout.splitlines()}
    return files | {folder for file in files for folder in file.parents}


def test_every_page_stands_in_the_index():
    index = (DOCS / "index.md").read_text("utf-8").split()
    for page in DOCS.glob("*.md"):
        assert page.stem in (*index, "index"), f"docs/index.md lacks {page.stem}"


def test_the_readme_takes_three_minutes():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 700  # 230 words a minute, tables and commands included


@pytest.mark.parametrize("name", METHODS)
def test_published_settings_are_settings(name, tmp_path):
    parsed = parse(VERBS["train"], METHODS[name].published.split())
    assert parsed.positionals == ()
    place = {"preset": name, "output_dir": str(tmp_path), "use_cpu": True}
    made = make_config({**place, **parsed.settings})
    # prompts of an optimiser step and updates per rollout, as the papers have them
    prompts, updates = AUTHORS.get(name.split("-")[0], (8, 1))
    assert make_schedule(1000, made).prompts == prompts
    assert made.steps_per_rollout() == updates


def test_the_example_of_an_objective_of_ones_own_runs(capsys):
    path = DOCS.parent / "examples" / "custom_objective.py"
    spec = importlib.util.spec_from_file_location("custom_objective", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(steps=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "with thinking" in line]
    assert [line.split(",")[0] for line in lines] == [
        "hardest_token",
        "nrt-ws + ends_with_the_digit",
    ]
    assert module.ends_with_the_digit(
        ["4 1 5 </think>", "5 </think>", "</think>"], ["is 5"] * 3
    ) == [0.5, 0.5, 0.0]


def no_reward(completions, **kwargs):
    return [0.0] * len(completions)


def test_every_number_that_a_run_writes_is_in_the_table_and_nothing_else(tmp_path):
    seen: set[str] = set()
    for preset in ("nrt-ws", "rlpr"):
        args = NRTConfig(
            output_dir=str(tmp_path / preset),
            preset=preset,
            per_device_train_batch_size=4,
            num_generations=2,
            max_trace_length=4,
            max_answer_length=16,
            eval_num_generations=2,
            max_steps=1,
            save_strategy="no",
            use_cpu=True,
        )
        trainer = NRTTrainer(
            tiny_model(), args, QA, QA[:2], byte_tokenizer(), reward_funcs=no_reward
        )
        trainer.train()
        trainer.evaluate(QA[:1])
        trainer.evaluate()
        records = trainer.recorder.records
        records.append_metrics(1, {"loss": math.nan})
        lines = (*read_metrics(records.path), *read_timings(records.path))
        seen |= {name for line in lines for name in line} - {"step"}
    # what a model without a middle and a run without vLLM do not write
    finding = Finding(0.0, 0.0, (0.0, 0.0), 0.0, ((1, 0.0, 0.0),) * len(BINS))
    seen |= {*summary([finding] * 2), "mismatch_kl", "mismatch_max"}
    intervals = {f"{metric.name}{end}" for metric in MEASURED for end in ("_low", "_high")}
    assert intervals <= seen
    assert seen - intervals == {*METRICS}


def test_decisions_stay_few_and_short():
    text = (DOCS / "decisions.md").read_text("utf-8")
    found = re.split(r"^### .*\n", re.sub(r"^## .*\n", "", text, flags=re.MULTILINE), flags=re.M)
    assert len(found) <= 1 + 30
    for decision in found[1:]:
        assert len(decision.split()) <= 120, decision[:60]


def test_the_map_has_the_sentence_of_each_room():
    page = (DOCS / "map.md").read_text("utf-8")
    source = ROOT / "src" / "native_reasoning"
    doors = {room: ast.parse((source / room / "__init__.py").read_text("utf-8")) for room in ROOMS}
    said = {room: ast.get_docstring(tree).splitlines()[0] for room, tree in doors.items()}
    rows = [f"| `{room}/` | {text} |".replace("``", "`") for room, text in said.items()]
    assert "\n".join(rows) in page
    for path in re.findall(r"`(\w+/\w+\.py)`", page):
        assert any((root / path).exists() for root in (source, ROOT)), path
