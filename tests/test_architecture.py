"""The rooms: which may import which, and how much may stand in a room, a file and a function."""

import ast
import sys
from collections import Counter
from functools import cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import native_reasoning

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, to which pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "native_reasoning"
FILES = sorted(SOURCE.rglob("*.py"))
#: docs/decisions.md, "Exceptions to the budgets"
MORE = {"trainer.py __init__": 9}

#: In the order of the data; a room imports only itself and rooms before it.
ROOMS = (
    "config",
    "data",
    "model",
    "objective",
    "rollout",
    "scoring",
    "records",
    "evaluation",
    "training",
    "integrations",
    "report",
    "demo",
    "cli",
)
PLACE = {room: place for place, room in enumerate(ROOMS)}
#: A room is a dozen names, with its sub-folders.
NAMES = 12


def of(path: Path) -> str:
    """The dotted name of a file, ``scoring.head``; that of a room's ``__init__`` is the room's."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {of(path): path for path in FILES}


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of ours that a file imports when it is imported, or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module.partition(".")[0] == "native_reasoning":
                inside = module.partition(".")[2]
                for alias in node.names:
                    full = f"{inside}.{alias.name}".lstrip(".")
                    found.add(full if full in MODULES else inside)
    return frozenset(found - {""})


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name != "__pycache__"}


def test_the_package_is_its_rooms():
    assert names(SOURCE) == {"__init__.py", *ROOMS}
    assert len(names(SOURCE)) <= 14


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_dozen_names_and_a_sentence(room):
    assert len(names(SOURCE / room)) <= NAMES, sorted(names(SOURCE / room))
    assert ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text()))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_room_imports_only_rooms_before_it(path):
    room = of(path).partition(".")[0]
    if room == "__init__":  # the door of the package imports late
        return
    for other in imports(path):
        assert PLACE[other.partition(".")[0]] <= PLACE[room], f"{of(path)} imports {other}"


def test_nothing_imports_in_a_circle():
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module in done:
            return
        for other in sorted(imports(MODULES[module]) & MODULES.keys()):
            visit(other, (*above, module))
        done.add(module)

    for module in sorted(MODULES.keys() - {"__init__"}):
        visit(module, ())


def defined(module: str) -> set[str]:
    """What stands at the top level of a module of ours, and the modules in it."""
    found = {inner.removeprefix(f"{module}.").partition(".")[0] for inner in MODULES}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "docs", "examples", "tests")
    for path in ROOT.joinpath(folder).rglob("*.py")
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_import_what_there_is(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and module.partition(".")[0] == "native_reasoning":
            inside = module.partition(".")[2]
            there = defined(inside) if inside else {*native_reasoning.__all__, *ROOMS}
            gone = {alias.name for alias in node.names} - there
            assert not gone, f"{module} has no {', '.join(gone)}"


def test_no_two_modules_have_one_name():
    count = Counter(module.rpartition(".")[2] for module in MODULES)
    assert not {module for module, times in count.items() if times > 1}


@pytest.mark.parametrize("path", FILES, ids=name)
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
    found = {
        name for name, from_ in packages_distributions().items() if wanted & {*map(_same, from_)}
    }
    # make test installs neither lm-eval nor bitsandbytes
    return found | {name.replace("-", "_") for name in wanted}


def _same(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_what_is_imported_is_declared(path):
    found = packages(ast.parse(path.read_text(encoding="utf-8")))
    assert found <= importable() | BROUGHT, found - importable() - BROUGHT
