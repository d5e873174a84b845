"""TensorFlow is imported in few places, and code reads every setting of a recipe. For layers and cycles see pyproject.toml."""

import ast
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swav_tf.recipe.classifier import ClassifierRecipe
from swav_tf.recipe.explain import section_of
from swav_tf.recipe.section import Section

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli", "configs", "evaluate", "export", "swav_tf")

# Everything else must be importable where TensorFlow is not installed.
NEEDS_TENSORFLOW = (
    *("swav_tf.model", "swav_tf.method", "swav_tf.training", "swav_tf.data.loader", "export.graph"),
    *("cli.demo"),
)

IMPORT_WITHOUT_TENSORFLOW = """
import importlib, sys
for name in ("tensorflow", "keras", "keras_cv", "tensorflow_datasets", "tf2onnx"):
    sys.modules[name] = None  # every import of it fails
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"{module}: {error}")
"""


def modules() -> list[str]:
    found = list(PACKAGES)
    for package in PACKAGES:
        found += [module.name for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")]
    return found


def failed_imports(names: list[str]) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT_TENSORFLOW, *names],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout.splitlines()


def test_all_other_modules_import_without_tensorflow() -> None:
    assert failed_imports([name for name in modules() if not name.startswith(NEEDS_TENSORFLOW)]) == []
    assert len(failed_imports(["swav_tf.training.pretrain"])) == 1  # it is really blocked


# === Every setting is read ===


def sections(kind: type[Section] = Section) -> Iterator[type[Section]]:
    """All sections of recipes."""
    for section in kind.__subclasses__():
        if section.__module__.startswith("swav_tf.recipe."):
            yield section
        yield from sections(section)


def own_settings(section: type[Section]) -> set[str]:
    """The settings that a section defines and does not inherit."""
    own = section.model_fields.keys() & section.__annotations__.keys()
    return {name for name in own if section_of(section.model_fields[name].annotation) is None}


def without_settings(source: str) -> str:
    """A module of recipes with its sections but without their settings, and without the checks of them."""
    settings = {section.__name__: own_settings(section) for section in sections()}
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in settings:
            node.body = [
                part
                for part in node.body
                if (isinstance(part, ast.AnnAssign) and ast.unparse(part.target) not in settings[node.name])
                or (
                    isinstance(part, ast.FunctionDef)
                    and part.name != "impossible"
                    and [ast.unparse(decorator) for decorator in part.decorator_list] in ([], ["property"])
                )
                or isinstance(part, ast.Expr)
            ]
    return ast.unparse(tree)


# Bug caught: a setting that does nothing. Only settings that code reads are missed by mypy once no section has any.
def test_every_setting_is_read_by_code(tmp_path: Path) -> None:
    kinds = {section.__name__: section for section in sections()}
    assert ClassifierRecipe in kinds.values()
    shadows, stripped = [], set()
    for name in {section.__module__ for section in kinds.values()}:
        file = Path(str(importlib.import_module(name).__file__)).relative_to(ROOT)
        (tmp_path / file.name).write_text(without_settings((ROOT / file).read_text(encoding="utf-8")))
        shadows += ["--shadow-file", str(file), str(tmp_path / file.name)]
        stripped.add(str(file))
    cache = tmp_path / "cache"
    if (ROOT / ".mypy_cache").exists():  # of `make types`: saves most of the time
        shutil.copytree(ROOT / ".mypy_cache", cache)
    command = [sys.executable, "-m", "mypy", "-p", "swav_tf", "--no-pretty", "--cache-dir", str(cache)]
    run = subprocess.run([*command, *shadows], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr  # 2: mypy failed
    read: set[tuple[str, str]] = set()
    for line in run.stdout.splitlines():
        found = re.match(r'(\S+?):\d+: error: (?:Item )?"(\w+)" (?:of .+ )?has no attribute "(\w+)"', line)
        # To check a setting, or to advise on it, is not to use it.
        if found and found[2] in kinds and (found[1] in stripped or "recipe" not in Path(found[1]).parts):
            read |= {(base.__name__, found[3]) for base in kinds[found[2]].__mro__}
    unread = {(name, setting) for name, kind in kinds.items() for setting in own_settings(kind)} - read
    assert not unread, "settings that no code reads"
