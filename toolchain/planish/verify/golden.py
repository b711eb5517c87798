"""Outputs of an artifact, whoever ran it, against the outputs that the bundle stores."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from planish.bundle import Bundle
from planish.bundle.read import Cases
from planish.bundle.verdicts import verdict_of
from planish.tasks.generation import SLOTS
from planish.verdict import Failed, Metric, NotRun, Passed
from planish.verify.cases import Case
from planish.verify.compare import Outputs, worst
from planish.verify.lowering import FLOORS, NOISE_MULTIPLE
from planish_targets.contract import Evidence


def golden_inputs(bundle: Bundle, name: str) -> Cases:
    """Stored inputs of a target: case -> name -> tensor, in the order in which they are to be run."""
    given, _ = bundle.golden(name)
    if bundle.artifact(name).context:  # calls build on each other
        return dict(sorted(given.items(), key=lambda case: _slot(case[1])))
    return given


def _slot(inputs: Mapping[str, Tensor]) -> int:
    slots = inputs.get(SLOTS)
    return 0 if slots is None or not slots.numel() else int(slots.min())


def check_golden(
    bundle: Bundle, name: str, outputs: Mapping[str, Outputs], evidence: Evidence, device: str, check: str = "lowering"
) -> Passed | Failed:
    """Compare with the limit that the compile gated with.

    Args:
        bundle: what stores the expected outputs of the target.
        name: the target.
        outputs: case -> output name -> tensor. Nothing of it is trusted: shapes and dtypes may be any.
        evidence: grade of the run.
        device: what ran it, for people.
        check: name of the verdict.
    """
    given, expected = bundle.golden(name)
    if not any(expected.values()):
        return Failed(check, evidence, "the bundle stores no outputs to compare with", (), device)
    odd = [fault for case in expected for fault in _faults(case, expected[case], outputs.get(case, {}))]
    if odd:
        return Failed(check, evidence, "; ".join(odd[:3]) + _more(len(odd) - 3), (), device)
    cases = [Case(case, given.get(case, {})) for case in expected]
    relative, absolute, rows = (worst(cases, outputs, expected, k) for k in ("relative", "max_abs", "cosine"))
    gate = Metric("relative", relative.value, _limit(bundle, name), case=relative.case)
    metrics = (
        gate,
        Metric("max_abs", absolute.value, case=absolute.case),
        Metric("cosine", rows.value, case=rows.case),
    )
    if gate.ok:
        return Passed(check, evidence, metrics, device)
    return Failed(check, evidence, "the artifact does not reproduce the stored outputs", metrics, device)


def _faults(case: str, expected: Outputs, found: Outputs) -> list[str]:
    """What makes outputs incomparable; a broadcast must not make few numbers look like many."""
    faults = []
    for name, wanted in expected.items():
        if name not in found:
            faults.append(f"the runner did not return {name} of the case {case}")
        elif found[name].shape != wanted.shape:
            faults.append(f"{name} of {case} has the shape {_shape(found[name])} instead of {_shape(wanted)}")
        elif found[name].is_complex() or found[name].is_floating_point() != wanted.is_floating_point():
            faults.append(f"{name} of {case} holds {found[name].dtype} instead of {wanted.dtype}")
    return faults


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _more(count: int) -> str:
    return f"; and {count} more" if count > 0 else ""


def _limit(bundle: Bundle, name: str) -> float:
    """The limit that the compile gated with; where it did not run there, the loosest float16 one."""
    for entry in bundle.manifest.targets[name].verdicts:
        verdict = verdict_of(entry)
        if verdict.check == "lowering" and not isinstance(verdict, NotRun):
            found = [m.limit for m in verdict.metrics if m.name == "relative" and m.limit is not None]
            if found:
                return found[0]
    return NOISE_MULTIPLE * max(FLOORS.values())
