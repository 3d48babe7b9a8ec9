"""The rules of the design, read off the source: who imports whom, and who may touch what is private."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import BaseCallback

import sb3_delight

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "sb3_delight").rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
SEAMS = {"_weight", "_select"}  #: private names that a user's own method overrides
NUMERICS = {"torch", "numpy", "gymnasium", "stable_baselines3", "cloudpickle"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(source: ast.Module, package: str = "") -> set[str]:
    """Every module imported anywhere in the source, and every ``module.name`` of a from-import."""
    found = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def module_imports(path: Path) -> set[str]:
    return imports(tree(path), ".".join(path.relative_to(ROOT).parent.parts))


def roots(imported: set[str]) -> set[str]:
    return {module.split(".")[0] for module in imported}


def outside(path: Path, allowed: set[str]) -> set[str]:
    return roots(module_imports(path)) - allowed - sys.stdlib_module_names


def private(identifier: str) -> bool:
    return identifier.startswith("_") and not identifier.endswith("__")


def library_private_names() -> set[str]:
    """Private names that sb3_delight defines, but for those by which stable-baselines3 wants callbacks written."""
    found = set()
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return set(filter(private, found)) - vars(BaseCallback).keys()


def private_access(source: ast.Module, library_names: set[str]) -> Iterator[str]:
    """What an example must not do: read, import or redefine what is private, but for overriding the seams."""
    for module in imports(source):
        if module.startswith("sb3_delight") and any(private(part) for part in module.split(".")):
            yield module
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            parent = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            seam = (own or parent) and node.attr in SEAMS
            of_tuple = node.attr == "_replace"  # a named tuple's, which is public
            if not (seam or ((own or of_tuple) and node.attr not in library_names)):
                yield ast.unparse(node)
        elif isinstance(node, ast.ClassDef):
            methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            yield from sorted(f"{node.name}.{method}" for method in methods & library_names - SEAMS)


@pytest.mark.parametrize("module", ["objectives", "returns"])
def test_the_equations_need_torch_only(module: str) -> None:
    assert outside(ROOT / "sb3_delight" / f"{module}.py", {"torch"}) == set()


@pytest.mark.parametrize("module", [path for path in MODULES if path.parent.name == "sb3_delight"], ids=name)
def test_every_module_needs_stable_baselines3_and_what_that_needs(module: Path) -> None:
    """But for the pool on Ray, and figures."""
    besides = {"ray_actors": {"ray"}, "callbacks": {"matplotlib"}}.get(module.stem, set())
    assert outside(module, {*NUMERICS, "sb3_delight", *besides}) == set()


@pytest.mark.parametrize("module", ["dg", "kondo_dg", "baselines"])
def test_methods_do_not_import_one_another(module: str) -> None:
    others = {"sb3_delight.dg", "sb3_delight.kondo_dg", "sb3_delight.baselines"} - {f"sb3_delight.{module}"}
    shortcuts = {f"sb3_delight.{public}" for public in ("DG", "KondoDG", "PolicyGradient")}
    assert module_imports(ROOT / "sb3_delight" / f"{module}.py") & (others | shortcuts) == set()


@pytest.mark.parametrize("module", sorted((ROOT / "sb3_delight" / "envs").glob("*.py")), ids=name)
def test_environments_need_no_algorithm_and_optional_packages_only_where_they_are_used(module: Path) -> None:
    optional = {"digits": {"sklearn"}, "minatar": {"minatar"}}.get(module.stem, set())
    assert outside(module, {*NUMERICS, *optional, "sb3_delight"}) == set()
    own = {found for found in module_imports(module) if found.startswith("sb3_delight.")}
    assert {found for found in own if found.split(".")[1] not in ("arguments", "envs")} == set()


@pytest.mark.parametrize(("package", "home"), [("ray", "ray_actors.py"), ("rl_zoo3", "zoo/")])
def test_heavy_packages_are_imported_in_one_place_each(package: str, home: str) -> None:
    importers = {name(path) for path in MODULES if package in roots(module_imports(path))}
    assert {path for path in importers if not path.startswith(f"sb3_delight/{home}")} == set()


def test_the_package_imports_neither_examples_nor_tests() -> None:
    files = [*EXAMPLES, *(ROOT / "tests").rglob("*.py")]
    elsewhere = {"examples", "tests"} | {path.stem for path in files} - {"__init__"}
    assert {name(path): found for path in MODULES if (found := roots(module_imports(path)) & elsewhere)} == {}


def test_importing_the_package_imports_neither_ray_nor_rl_zoo3() -> None:
    code = "import sys, sb3_delight; print(sorted({'ray', 'rl_zoo3', 'sb3_delight'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "['sb3_delight']"


def test_the_package_shows_its_algorithms_and_no_others() -> None:
    assert {"DG", "KondoDG", "PolicyGradient", "__version__"} <= set(dir(sb3_delight))
    with pytest.raises(AttributeError, match="has no attribute 'KondoDg'"):
        sb3_delight.KondoDg  # type: ignore[attr-defined]  # noqa: B018  # mypy sees that, too


def test_train_is_written_once() -> None:
    trainers = {
        name(path)
        for path in MODULES
        for owner in ast.walk(tree(path))
        if isinstance(owner, ast.ClassDef)
        for method in owner.body
        if isinstance(method, ast.FunctionDef) and method.name == "train"
    }
    assert trainers == {"sb3_delight/policy_gradient.py"}


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_examples_use_public_names_only(example: Path) -> None:
    assert list(private_access(tree(example), library_private_names())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from sb3_delight.buffers import _numpy_dtype", ["sb3_delight.buffers._numpy_dtype"]),
        ("from sb3_delight import dg\ndg._helper()", ["dg._helper"]),
        ("model.policy._build", ["model.policy._build"]),
        ("class M(PG):\n def f(self):\n  self._gradient_step()", ["self._gradient_step"]),
        ("class M(PG):\n def _gradient_step(self): ...", ["M._gradient_step"]),
        ("class M(PG):\n def _weight(self, a, b):\n  return super()._weight(a, b) * self._mine", []),
        ("class M(PG):\n def _select(self, rollout): return None", []),
        ("model._weight(a, b)", ["model._weight"]),
        ("batch._replace(advantages=a)", []),
        ("batch._asdict()", ["batch._asdict"]),
        ("class C(BaseCallback):\n def _on_step(self): return True", []),
        ("self.__class__.__name__", []),
    ],
)
def test_private_access_is_found(source: str, found: list[str]) -> None:
    assert list(private_access(ast.parse(source), library_private_names())) == found


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import ray.train as r", "", {"ray.train"}),
        ("def f():\n from ray import tune", "", {"ray", "ray.tune"}),
        ("from .dg import DG", "sb3_delight", {"sb3_delight.dg", "sb3_delight.dg.DG"}),
        ("from .. import dg", "sb3_delight.envs", {"sb3_delight", "sb3_delight.dg"}),
    ],
)
def test_imports_are_found(source: str, package: str, found: set[str]) -> None:
    assert imports(ast.parse(source), package) == found
