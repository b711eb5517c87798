"""Do the files state the program's numbers? Epsilons are too small for any comparison of outputs in float16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from planish.verdict import Divergence, Failed, Metric, NotRun, Passed, Verdict
from planish_passes.errors import PlanishError
from planish_passes.program import Program
from planish_targets.attributes import EPSILON, Step, arguments, epsilons, fx_number, fx_steps
from planish_targets.contract import Artifact, Attribute, Evidence, Numerics, Target, Unavailable

CHECK = "attributes"
_SOURCE = "read from the files"


@dataclass(frozen=True)
class _Expected:
    """An epsilon of the program.

    Args:
        node, op, module: where it is.
        value: the number.
        same_as: equal for nodes that compute the same value, which a target may compute once.
        constant: True when it acts on weights alone, so that a target may fold it into them.
    """

    node: str
    op: str
    module: str
    value: float
    same_as: int
    constant: bool


def check_attributes(target: Target, artifact: Artifact, form: Program, numerics: Numerics) -> Verdict:
    """Every normalisation's epsilon in the program is in every file that a runtime opens, rounded to its dtype there.

    Compared by module, and where a file does not tell modules, as an unordered collection. A number that may be gone
    (folded into weights, or shared by equal computations) is counted, not compared.

    Args:
        form: the program that was lowered.
        numerics: float16 is a rounding that the check grants only to targets that compute in it.
    """
    expected = program_epsilons(form)
    try:
        found = target.read_attributes(artifact)
    except PlanishError as problem:
        return Failed(CHECK, Evidence.STRUCTURAL, f"the files cannot be read: {problem.what}", (), _SOURCE)
    if isinstance(found, Unavailable):
        return NotRun(CHECK, found.reason)
    if not found:
        return NotRun(CHECK, "the target names no file that states them")
    compared, gone, surplus = 0, dict[str, None](), 0
    for file, stated in found.items():
        matches = _match(expected, [a for a in stated if a.name == EPSILON], numerics.compute)
        wrong = [e for e in matches.missing if not _may_be_gone(e, matches)]
        if wrong:
            return _failed(file, wrong[0], matches)
        compared += len(matches.found)
        gone.update(dict.fromkeys(e.module or e.node for e in matches.missing))
        surplus += len(matches.left)
    if gone and not compared:
        return NotRun(CHECK, f"every epsilon is folded into weights: {', '.join(gone)}")
    metrics = [Metric("equal_epsilons", float(compared))]
    if gone:
        metrics.append(Metric("absent_epsilons", float(len(gone)), case=", ".join(gone)))
    if surplus:
        metrics.append(Metric("other_epsilons", float(surplus)))
    return Passed(CHECK, Evidence.STRUCTURAL, tuple(metrics), _SOURCE)


def program_epsilons(program: Program) -> list[_Expected]:
    """Epsilons of a program, in execution order."""
    names = program.weight_names()

    def read(node: fx.Node) -> Tensor | None:
        if node.name not in names:
            return None
        spec = program.weights.spec(names[node.name])
        single = torch.Size(spec.shape).numel() == 1 and spec.dtype.is_floating_point
        return program.weights.read(names[node.name]) if single else None

    numbers, live = _value_numbers(program), _depends_on_inputs(program)
    found = []
    for step, number in epsilons(fx_steps(program.graph), lambda key: fx_number(key, read)):
        node = step.output
        assert isinstance(node, fx.Node)
        constant = not any(n in live for n in _acted_on(node, step))
        found.append(_Expected(node.name, step.op, step.module, number.value, numbers[node], constant))
    return found


def _acted_on(node: fx.Node, step: Step) -> list[fx.Node]:
    """What the epsilon is added to, or computed from."""
    statistics = arguments(node).get("running_var")  # a batch norm's variance is a weight
    if isinstance(statistics, fx.Node):
        return [statistics]
    return [key for key in step.inputs if isinstance(key, fx.Node)]


def _depends_on_inputs(program: Program) -> set[fx.Node]:
    names, live = program.weight_names(), set[fx.Node]()
    for node in program.graph.nodes:
        given = node.op == "placeholder" and node.name not in names
        if given or any(source in live for source in node.all_input_nodes):
            live.add(node)
    return live


def _value_numbers(program: Program) -> dict[fx.Node, int]:
    """The same number for calls of the same operator on the same values."""
    seen: dict[str, int] = {}
    numbers: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        key = node.name
        if node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")  # type: ignore[misc]
            key = f"{node.target} {args} {kwargs}"
        numbers[node] = seen.setdefault(key, len(seen))
    return numbers


# -- matching ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matches:
    """Which epsilons of the program a file states; `missing` and `left` keep their orders."""

    found: Sequence[_Expected]
    missing: Sequence[_Expected]
    left: Sequence[Attribute]


def _match(expected: Sequence[_Expected], stated: Sequence[Attribute], compute: torch.dtype) -> _Matches:
    found, missing, left = list[_Expected](), list[_Expected](), list(stated)
    modules = {e.module for e in expected}
    # What a file names comes first: a nameless equal number must not stand in for a wrong named one.
    rounds = (lambda e, a: a.module == e.module, lambda e, a: a.module not in modules or not a.module)
    waiting = list(expected)
    for near in rounds:
        missing = []
        for want in waiting:
            fits = (i for i, a in enumerate(left) if near(want, a) and _equal(want.value, a, compute))
            at = next(fits, None)
            if at is None:
                missing.append(want)
            else:
                found.append(want)
                del left[at]
        waiting = missing
    return _Matches(found, missing, left)


def _equal(value: float, stated: Attribute, compute: torch.dtype) -> bool:
    granted = stated.dtype in (torch.float64, torch.float32) or stated.dtype == compute
    return granted and stated.value == as_stored(value, stated.dtype)


def as_stored(value: float, dtype: torch.dtype) -> float:
    """The number of `dtype` that stands for an epsilon: the nearest, but never 0 for a positive one.

    With an epsilon of 0 a constant row becomes 0 / 0, so emitters store the smallest positive number instead.
    """
    if dtype == torch.float64:
        return value
    nearest = float(torch.tensor(value, dtype=torch.float32).to(dtype))
    info = torch.finfo(dtype)
    return nearest if nearest or value <= 0 else info.smallest_normal * info.eps


def _may_be_gone(want: _Expected, matches: _Matches) -> bool:
    if any(a.module == want.module and a.module for a in matches.left):
        return False  # it is there, with another value
    return want.constant or any(e.same_as == want.same_as for e in matches.found)


def _failed(file: str, want: _Expected, matches: _Matches) -> Failed:
    named = [a for a in matches.left if a.module == want.module]
    nameless = [a for a in matches.left if not a.module]
    where, value = f"module {want.module or '(top)'}: {want.op} ({want.node})", f"epsilon {want.value:g}"
    error = float("inf")
    if named or nameless:
        other = (named or nameless)[0]
        said = f"{file} says {other.value:g} ({other.op}, {_short(other)})"
        said += "" if named else " for a normalisation that it does not name"
        error = abs(other.value - want.value) / want.value if want.value else error
    else:
        said = f"{file} states none"
    metrics = (Metric("equal_epsilons", float(len(matches.found))),)
    diverged = Divergence(want.node, want.op, want.module, error)
    return Failed(CHECK, Evidence.STRUCTURAL, f"{where} has {value}, {said}", metrics, _SOURCE, diverged)


def _short(stated: Attribute) -> str:
    return str(stated.dtype).removeprefix("torch.")
