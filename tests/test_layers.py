"""Imports run one way: from a layer to itself or to those before it, lazy imports included; and in no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS = (
    "sae_sweeps.errors",
    "sae_sweeps.fields",
    "sae_sweeps.schedules",
    "sae_sweeps.storage",
    "sae_sweeps.lens",
    "sae_sweeps.gguf",
    "sae_sweeps.builtin.text",
    "sae_sweeps.config",
    "sae_sweeps.sweeps",
    "sae_sweeps.kernels",
    "sae_sweeps.architectures",
    "sae_sweeps.penalties",
    "sae_sweeps.activations",
    "sae_sweeps.builtin",
    "sae_sweeps.evaluation",
    "sae_sweeps.training",
    "sae_sweeps.tracking",
    "analysis.grouped",
    "analysis.text",
    "analysis.metrics",
    "analysis.reading",
    "analysis.columns",
    "analysis.auditing",
    "analysis.tables",
    "analysis.output",
    "analysis.plots",
    "analysis.report",
    "analysis.features",
    "analysis.wandb",
    "analysis.commands",
    "analysis.__main__",
    "sae_sweeps.runs",
    "sae_sweeps.cluster",
    "sae_sweeps.cli",
    "sae_sweeps.__main__",
    "hydra_plugins",
    "launch",
)
"""From the ground up. A module belongs to the longest prefix of its name."""

PACKAGES = ("sae_sweeps", "sae_sweeps.builtin", "analysis")
"""Their `__init__.py` holds no more than constants and is below every layer."""

DYNAMIC = {"sae_sweeps/config/plugins.py", "sae_sweeps/builtin/text/corpus.py"}
"""Files that import modules by name: components, and modules of the standard library, whose text is read."""

TYPE_CIRCLES = {
    frozenset({"sae_sweeps.config.penalties", "sae_sweeps.config.run"}),
    frozenset(
        {"sae_sweeps.architectures.base", "sae_sweeps.architectures.context", "sae_sweeps.architectures.group_layer"}
    ),
    frozenset(
        {
            "sae_sweeps.kernels.choose",
            "sae_sweeps.kernels.largest_triton",
            "sae_sweeps.kernels.pairs",
            "sae_sweeps.kernels.sparse_numba",
            "sae_sweeps.kernels.sparse_reference",
            "sae_sweeps.kernels.sparse_triton",
        }
    ),
}
"""Modules that name each other, for type checkers only."""


def product_files(root: Path) -> list[Path]:
    folders = ("sae_sweeps", "analysis", "hydra_plugins")
    return sorted([root / "launch.py", *(path for name in folders for path in (root / name).rglob("*.py"))])


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path, known: set[str]) -> list[tuple[str, bool]]:
    """The project's modules that a file imports, anywhere in it, and whether only for type checkers."""
    tree = parsed(path)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import at line {node.lineno}"
            module = node.module or ""
            within = [f"{module}.{alias.name}" for alias in node.names]
            names = [name for name in within if name in known] or [module]
        found += [(name, id(node) in for_types) for name in names if name in known]
    return found


@cache
def graph() -> dict[str, list[tuple[str, bool]]]:
    files = {module_name(path, ROOT): path for path in product_files(ROOT)}
    return {name: imports_of(path, set(files)) for name, path in files.items()}


def layer_of(module: str) -> int:
    if module in PACKAGES:
        return -1
    owners = [n for n, layer in enumerate(LAYERS) if module == layer or module.startswith(layer + ".")]
    assert owners, f"{module} belongs to no layer"
    return max(owners, key=lambda n: len(LAYERS[n]))


def upward_imports(modules: dict[str, list[tuple[str, bool]]]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, targets in modules.items()
        for target, _ in targets
        if layer_of(target) > layer_of(module)
    ]


def circles(edges: dict[str, set[str]]) -> list[frozenset[str]]:
    """Sets of more than one module that reach each other (strongly connected components, by Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(frozenset(component))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def test_no_import_runs_upwards():
    assert upward_imports(graph()) == []


def test_analysis_reads_files_and_configs_only():
    below = {"errors", "schedules", "storage", "config", "tracking"}
    used = {t.split(".")[1] for m, targets in graph().items() if m.startswith("analysis.") for t, _ in targets
            if t.startswith("sae_sweeps.")}  # fmt: skip
    assert used <= below


def test_no_circle_but_of_types():
    modules = graph()
    assert circles({m: {t for t, for_types in targets if not for_types} for m, targets in modules.items()}) == []
    with_types = circles({m: {t for t, _ in targets} for m, targets in modules.items()})
    assert set(with_types) <= TYPE_CIRCLES


def test_modules_are_imported_by_name_in_listed_files_only():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in product_files(ROOT)
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith(("import_module", "__import__")))
    }
    assert users == DYNAMIC


def test_an_upward_import_is_found(tmp_path):
    planted = tmp_path / "files.py"
    text = (ROOT / "sae_sweeps" / "storage" / "files.py").read_text()
    planted.write_text(text + "\n\ndef later():\n    from sae_sweeps.runs import session\n")
    modules = graph() | {"sae_sweeps.storage.files": imports_of(planted, set(graph()))}
    assert upward_imports(modules) == ["sae_sweeps.storage.files imports sae_sweeps.runs.session"]


def test_what_reads_files_and_configs_loads_no_torch():
    packages = ("sae_sweeps.storage", "sae_sweeps.config", "sae_sweeps.sweeps", "analysis")
    modules = [m for name in packages for m in graph() if m.startswith(name + ".") and not m.endswith("__main__")]
    code = f"""import sys, importlib
for module in {modules!r}:
    importlib.import_module(module)
    if 'torch' in sys.modules:
        sys.exit(f'{{module}} loads torch')"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
