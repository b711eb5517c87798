"""Find where two runs begin to differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from planish.verdict import Divergence, Layer
from planish.verify.cases import Case
from planish.verify.compare import valid
from planish_passes.interpret import interpret
from planish_passes.program import Program, module_path, op_name
from planish_passes.taps import COMPOSITES

MASK_FILL = 1e30  # no activation is larger; masks are filled with the lowest number of the type that they were made in
_LEAST = 1e-12
HALF_FILL = torch.finfo(torch.float16).max  # what becomes of such a number where float16 is computed


def relative_error(found: Tensor, truth: Tensor, least: float = _LEAST) -> float:
    """max|found - truth| / max|truth|; infinity when the shapes differ or a value is not finite.

    Mask fills count as one number in every type.

    Args:
        least: what max|truth| counts for at least.
    """
    if found.shape != truth.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    found, truth = _filled(found), _filled(truth)
    scale = float(truth.abs().max()) if truth.numel() else 0.0
    return float((found.double() - truth.double()).abs().max()) / max(scale, least) if truth.numel() else 0.0


def apart(node: fx.Node, found: Tensor, truth: Tensor, least: float = _LEAST) -> Layer:
    """How far a node's value is off; `least` as of `relative_error`."""
    largest = relative_error(found, truth, least)
    typical = largest
    if math.isfinite(largest) and truth.numel():
        found, truth = _filled(found).double(), _filled(truth).double()
        typical = float((found - truth).norm()) / max(float(truth.norm()), 1e-12)
    return Layer(node.name, op_name(node), module_path(node), largest, typical)


def _filled(value: Tensor) -> Tensor:
    return torch.where(value.abs() > MASK_FILL, value.sign() * HALF_FILL, value)


def first(pairs: Iterable[tuple[fx.Node, Tensor, Tensor]], limit: float) -> Divergence | None:
    """The first node (in execution order) whose error exceeds the limit, else the one with the largest error."""
    largest: Divergence | None = None
    for node, found, truth in pairs:
        error = relative_error(found, truth)
        here = Divergence(node.name, op_name(node), module_path(node), error)
        if error > limit:
            return here
        if largest is None or error > largest.relative_error:
            largest = here
    return largest


def against_model(program: Program, model: nn.Module, case: Case, limit: float) -> Divergence | None:
    """Compare each leaf module's output in the original model with the program's value at the same module path."""
    return first(beside(program, module_outputs(model, case.inputs, return_dict=True), case), limit)


def beside(program: Program, truth: Mapping[str, Sequence[Tensor]], case: Case) -> list[tuple[fx.Node, Tensor, Tensor]]:
    """The pairs of `Beside`, over one run."""
    pairs = Beside(truth, case)
    interpret(program, case.inputs, tap=pairs.tap)
    return pairs.found


class Beside:
    """(node, the program's value, the model's) of every composite whose module path is in `truth`; what was merged with
    others (packed linears) has no counterpart and is left out. Filled by a run of the case that `tap` looks at."""

    def __init__(self, truth: Mapping[str, Sequence[Tensor]], case: Case) -> None:
        self.found: list[tuple[fx.Node, Tensor, Tensor]] = []
        self._truth, self._case = truth, case
        self._seen: dict[str, int] = {}

    def tap(self, node: fx.Node, value: Tensor) -> None:
        """See `Run.tap`."""
        path = module_path(node)
        if path in self._truth and op_name(node) in COMPOSITES:
            number = self._seen.get(path, 0)
            self._seen[path] = number + 1
            told = self._truth[path]
            if number < len(told) and told[number].shape == value.shape:
                self.found.append((node, valid(value, self._case), valid(told[number], self._case)))


def module_outputs(model: nn.Module, inputs: Mapping[str, Tensor], **options: Any) -> dict[str, list[Tensor]]:
    """What each leaf module of the original model returned in one call, by module path, call by call."""
    outputs: dict[str, list[Tensor]] = {}
    handles = []
    for path, module in model.named_modules():
        if not any(module.children()):
            handles.append(module.register_forward_hook(_Collector(path, outputs)))
    try:
        with torch.no_grad():
            model(**inputs, **options)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


class _Collector:
    def __init__(self, path: str, outputs: dict[str, list[Tensor]]) -> None:
        self.path, self.outputs = path, outputs

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.outputs.setdefault(self.path, []).append(output.detach().clone())


class Layers:
    """Error of each tapped value of an artifact against the program's, in execution order. Filled by a run of the case
    that `tap` looks at.

    Args:
        compute: what the artifact computes in. Below float16's smallest normal number (6.1e-5) its digits dwindle, and
            some processors take such numbers for 0: values that are smaller than that altogether are held to it.
    """

    def __init__(self, case: Case, shown: Mapping[str, Tensor], compute: torch.dtype = torch.float32) -> None:
        self.found: list[Layer] = []
        self._case, self._shown = case, shown
        self._least = torch.finfo(compute).smallest_normal if compute == torch.float16 else _LEAST

    def tap(self, node: fx.Node, value: Tensor) -> None:
        """See `Run.tap`."""
        if node.name in self._shown:
            shown, own = valid(self._shown[node.name], self._case), valid(value, self._case)
            self.found.append(apart(node, shown, own, self._least))


def against_taps(program: Program, case: Case, found: Mapping[str, Tensor], limit: float) -> Divergence | None:
    """Compare tapped values of an artifact (node name -> value) with the program's own."""
    pairs: list[tuple[fx.Node, Tensor, Tensor]] = []

    def tap(node: fx.Node, value: Tensor) -> None:
        if node.name in found:
            pairs.append((node, valid(found[node.name], case), valid(value, case)))

    interpret(program, case.inputs, tap=tap)
    return first(pairs, limit)
