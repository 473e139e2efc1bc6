"""The straight line: what may import what, and how long a file or function may be."""

import ast
import sys
from functools import cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, to which pytest brings it
    import tomli as tomllib

SOURCE = Path(__file__).parents[1] / "src" / "native_reasoning"
FILES = sorted(SOURCE.rglob("*.py"))
#: docs/decisions.md, "Exceptions to the budgets"
MORE = {"trainer.py __init__": 9}

#: Each stage imports only itself and what stands before it.
LINE = (
    ("errors", "names"),
    ("settings", "options"),
    ("methods",),
    ("presets",),
    ("types",),
    ("rewards", "advantages"),
    ("objective",),
    ("losses",),
    ("guards", "checks", "config", "recipe"),
    ("custom", "ranks", "gathered"),
    ("data",),
    ("chat",),
    ("boundary",),
    ("frames",),
    ("template",),
    ("words",),
    ("encoding",),
    ("prepared",),
    ("folders", "quantised"),
    ("inplace",),
    ("adapters",),
    ("policy",),
    ("inputs",),
    ("head", "layouts"),
    ("rollout",),
    ("packing",),
    ("scoring",),
    ("capabilities",),
    ("verdicts",),
    ("judges", "filters", "state"),
    ("groups",),
    ("manifest", "disk", "tables", "records"),
    ("window",),
    ("diagnostics",),
    ("meter", "runlog"),
    ("parts", "clock"),
    ("maker",),
    ("evaluate", "conversation"),
    ("runs",),
    ("shards",),
    ("collapse", "callbacks", "checkpoints", "progress", "resume", "trackers"),
    ("steps",),
    ("evaluating",),
    ("card",),
    ("publishing",),
    ("trainer",),
    ("integrations",),
    ("report",),
    ("lab",),
    ("cli",),
)
PLACE = {name: place for place, names in enumerate(LINE) for name in names}


def stage(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Stages that a file imports when it is imported, or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.startswith("native_reasoning."):
                found.add(node.module.split(".")[1])
            elif node.module == "native_reasoning":
                found |= {alias.name for alias in node.names} & PLACE.keys()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_each_file_imports_only_what_stands_above_it(path):
    if stage(path) == "__init__":
        return
    for name in imports(path):
        assert PLACE[name] <= PLACE[stage(path)], f"{stage(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_functions_and_parameter_lists_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [a for a in arguments if a.arg not in ("self", "cls")]
            assert len(named) <= MORE.get(f"{path.name} {node.name}", 8), node.name
            assert not any(
                isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "hasattr"
                for n in ast.walk(node)
            ), f"{node.name} probes with hasattr"


#: Whoever runs what imports them has them: verl, vLLM, DeepSpeed, and trackers of `report_to`.
BROUGHT = {"verl", "omegaconf", "tensordict", "transfer_queue", "vllm", "trl", "deepspeed"}
BROUGHT |= {"wandb", "trackio"}
EXTRAS = ("eval", "peft", "qlora")


def packages(tree: ast.AST) -> set[str]:
    """Top names of what is imported from other packages, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    tops = {name.partition(".")[0] for name in found}
    return tops - set(sys.stdlib_module_names) - {"native_reasoning"}


@cache
def importable() -> set[str]:
    """Names that pyproject.toml's dependencies, and the extras for users, bring by themselves."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    extras = (project["optional-dependencies"][name] for name in EXTRAS)
    asked = chain(project["dependencies"], *extras)
    wanted = {_same(Requirement(line).name) for line in asked}
    # bitsandbytes has a folder of its own here: Makefile, .qlora
    found = {
        name for name, from_ in packages_distributions().items() if wanted & {*map(_same, from_)}
    }
    return found | (wanted & {"bitsandbytes"})


def _same(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_is_imported_is_declared(path):
    found = packages(ast.parse(path.read_text(encoding="utf-8")))
    assert found <= importable() | BROUGHT, found - importable() - BROUGHT
