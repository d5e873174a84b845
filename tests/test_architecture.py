"""The laws of the house: who may import what, and that every setting of a recipe is read."""

import ast
import graphlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from swav_tf.recipe import classifier, pretraining
from swav_tf.recipe.fields import section_of
from swav_tf.recipe.pretraining import Section

ROOT = Path(__file__).parent.parent
PACKAGES = [
    name
    for name in ("cli", "configs", "evaluate", "export", "swav_tf")
    if (ROOT / name / "__init__.py").exists()
]

# Everything else must be importable where TensorFlow is not installed.
NEEDS_TENSORFLOW = (
    "cli.demo",
    "export.graph",
    "swav_tf.data.loader",
    "swav_tf.method",
    "swav_tf.model",
    "swav_tf.training",
)

IMPORT_WITHOUT_TENSORFLOW = """
import importlib, sys
for name in ("tensorflow", "keras", "keras_cv", "tensorflow_datasets", "tf2onnx"):
    sys.modules[name] = None  # every import of it fails
broken = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        broken[module] = str(error)
print("\\n".join(f"{module}: {error}" for module, error in broken.items()))
"""


def modules() -> list[str]:
    found = list(PACKAGES)
    for package in PACKAGES:
        found += [module.name for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")]
    return found


def broken_without_tensorflow(names: list[str]) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT_TENSORFLOW, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split("\n")[:-1]


def test_all_other_modules_import_without_tensorflow() -> None:
    free = [name for name in modules() if not name.startswith(NEEDS_TENSORFLOW)]
    assert {"cli.commands.pretrain", "swav_tf.recipe.pretraining", "swav_tf.data.sources"} <= set(free)
    assert broken_without_tensorflow(free) == [""]


def test_tensorflow_is_really_blocked() -> None:
    [line] = broken_without_tensorflow(["swav_tf.model.replicas"])
    assert line.startswith("swav_tf.model.replicas: ")


# === No cycle ===


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The names that a module imports, at its top and inside functions; those for type checkers alone left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports_of(node)


def import_graph() -> dict[str, set[str]]:
    """For each module of ours those of ours that it imports."""
    known = set(modules())

    def module_of(name: str) -> str | None:
        """The module that is imported: the name itself, or what it is a part of."""
        return next((found for found in (name, name.rpartition(".")[0]) if found in known), None)

    graph = {}
    for module in known:
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found = {module_of(name) for name in imports_of(ast.parse(path.read_text(encoding="utf-8")))}
        graph[module] = {name for name in found if name is not None and name != module}
    return graph


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph()
    assert "evaluate.backends" in graph["cli.options"]  # inside a function
    assert "evaluate.backends.backend" not in graph["cli.options"]  # for type checkers alone
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("modules that import each other: " + " <- ".join(error.args[1]))


# === Every setting is read ===


RECIPES = (pretraining, classifier)


def sections(module: ModuleType) -> dict[str, type[Section]]:
    """The sections that a module defines."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Section) and kind.__module__ == module.__name__
    }


def own_settings(kind: type[Section]) -> list[str]:
    """The settings that a section defines itself and does not inherit."""
    return [
        name
        for name, info in kind.model_fields.items()
        if name in kind.__annotations__ and section_of(info.annotation) is None
    ]


def settings() -> set[tuple[str, str]]:
    """All (section, setting) pairs."""
    kinds = {name: kind for module in RECIPES for name, kind in sections(module).items()}
    return {(name, field) for name, kind in kinds.items() for field in own_settings(kind)}


def source_without_settings(module: ModuleType) -> str:
    """A module of recipes with its sections but no settings in them."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    gone = settings()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in sections(module):
            node.body = [
                line
                for line in node.body
                if not (isinstance(line, ast.AnnAssign) and (node.name, ast.unparse(line.target)) in gone)
            ]
    return ast.unparse(tree)


@pytest.fixture(scope="module")
def settings_read(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """The settings that mypy misses when no section has any: those that some code reads."""
    folder = tmp_path_factory.mktemp("mypy")
    shadows = []
    for module in RECIPES:
        stripped = folder / Path(str(module.__file__)).name
        stripped.write_text(source_without_settings(module), encoding="utf-8")
        shadows += ["--shadow-file", f"swav_tf/recipe/{stripped.name}", str(stripped)]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--no-pretty", "--cache-dir", str(folder / "cache")),
            *shadows,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout + run.stderr  # 2: mypy itself failed
    # What is read of a section is read of those that it inherits from.
    kinds = {name: kind for module in RECIPES for name, kind in sections(module).items()}
    bases = {name: [base.__name__ for base in kind.__mro__] for name, kind in kinds.items()}
    missed = set()
    for line in run.stdout.splitlines():
        found = re.match(r'(\S+?):\d+: error: (?:Item )?"(\w+)" (?:of .+ )?has no attribute "(\w+)"', line)
        # To check a setting, or to advise on it, is not to honour it.
        if found and Path(found[1]).stem not in {
            "classifier_advice",
            "advice",
            "fields",
            "files",
        }:
            missed |= {(base, found[3]) for base in bases.get(found[2], [])}
    return missed | {("BatchNorm", setting) for setting in read_by_the_batch_norm_layer()}


def read_by_the_batch_norm_layer() -> set[str]:
    """What the layer uses of itself: it is given its section whole, `BatchNorm(**settings.model_dump())`."""
    tree = ast.parse((ROOT / "swav_tf" / "model" / "batch_norm.py").read_text(encoding="utf-8"))
    [layer] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "BatchNorm"]
    methods = [node for node in layer.body if isinstance(node, ast.FunctionDef) and node.name != "get_config"]
    return {
        node.attr
        for method in methods
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and ast.unparse(node.value) == "self"
    }


@pytest.mark.parametrize(("section", "setting"), sorted(settings()))
def test_every_setting_is_read_by_code(
    section: str, setting: str, settings_read: set[tuple[str, str]]
) -> None:
    assert (section, setting) in settings_read, f"no code reads {setting} of {section}"
