"""The house rules: imports only go down, every pass is in the order, no vendor SDK is needed to look around."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PASSES, TARGETS, TOOLCHAIN = (
    ROOT / p for p in ("passes/planish_passes", "targets/planish_targets", "toolchain/planish")
)
SDKS = {
    "coreai",
    "coreai_torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_ir",
    "coremltools",
    "executorch",
    "torchao",
}
HEAVY = {"torch", "transformers", *SDKS}


def imported(path: Path, *, top_level: bool = False) -> set[str]:
    """First parts of the modules that a file imports; `top_level` leaves out functions and TYPE_CHECKING."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.update(a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        for child in ast.iter_child_nodes(node):
            deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not (top_level and (deferred or checking)):
                visit(child)

    visit(ast.parse(path.read_text()))
    return names


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("path", files(PASSES), ids=lambda p: p.name)
def test_the_first_floor_knows_torch_and_nothing_else(path: Path) -> None:
    allowed = {"torch", "planish_passes", *sys.stdlib_module_names}
    assert imported(path) <= allowed


@pytest.mark.parametrize("path", files(TARGETS), ids=lambda p: str(p.relative_to(TARGETS)))
def test_the_second_floor_never_looks_up_and_loads_sdks_late(path: Path) -> None:
    assert not imported(path) & {"planish", "transformers", "optimum"}
    assert not imported(path, top_level=True) & SDKS


def test_every_pass_is_in_the_order() -> None:
    order = (PASSES / "pipeline.py").read_text()
    for path in files(PASSES):
        for node in ast.parse(path.read_text()).body:
            methods = {m.name for m in getattr(node, "body", []) if isinstance(m, ast.FunctionDef)}
            if isinstance(node, ast.ClassDef) and "run" in methods and node.name != "Pass":
                assert node.name in order, f"{node.name} ({path.name}) is in no pipeline"


def test_every_target_folder_is_a_target() -> None:
    from planish_targets.registry import targets

    holds = {p.parent.name for p in TARGETS.glob("*/__init__.py") if "TARGET" in p.read_text()}
    assert {"reference", "onnxruntime", "directml", "executorch", "coreml"} <= holds
    assert set(targets()) == holds


def test_looking_around_needs_no_sdk() -> None:
    """The registry imports, and lists all targets, in a process where every vendor SDK is missing."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(SDKS - {"torchao"})!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.path[:0] = {[str(PASSES.parent), str(TARGETS.parent)]!r}
from planish_targets.registry import targets
print(len(targets()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from planish.cli import main
sys.argv = ["planish", "--help"]
try:
    main()
except SystemExit:
    pass
print("LOADED", sorted(m for m in sys.modules if "." not in m))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=TOOLCHAIN.parent
    )
    loaded = set(ast.literal_eval(done.stdout.split("LOADED", 1)[1].strip()))
    assert not loaded & HEAVY
