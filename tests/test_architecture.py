"""The straight line: what may import what, and how long a file or function may be."""

import ast
from pathlib import Path

import pytest

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
    ("scoring", "rating"),
    ("capabilities",),
    ("verdicts",),
    ("judges", "filters", "state"),
    ("groups",),
    ("manifest", "disk", "tables", "records"),
    ("window",),
    ("diagnostics",),
    ("mismatch", "meter", "runlog"),
    ("parts", "limits", "clock"),
    ("maker",),
    ("evaluate", "conversation"),
    ("runs",),
    ("shards",),
    ("collapse", "callbacks", "checkpoints", "progress", "resume", "trackers"),
    ("steps",),
    ("evaluating",),
    ("bases", "card"),
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
