"""What is known, and by whom, about the Neural Engine, evaluated on a saved package. Advice: it proves nothing.

Core ML alone decides where an operation runs, on the device; `MLComputePlan` on a Mac shows it. Grades: S = Apple's own
text, C = community measurement or guess. None of the rules was checked on hardware by this project.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from planish_targets.contract import Artifact, Placed, Placement, Unavailable
from planish_targets.coreml import mil
from planish_targets.coreml.plan import CPU, Plan, Planned
from planish_targets.coreml.rules import RULES, Rule, View, flexible
from planish_targets.coreml.work import work

SOURCE = "no statement: Core ML decides on the device (MLComputePlan on a Mac shows it)"
_SHOWN = 3  # findings that a line of advice names


def placement(artifact: Artifact, plan: Plan | Unavailable) -> Placement:
    """Every operation of every function, and for each rule, and for the work, one line of advice.

    Args:
        artifact: whose package is read.
        plan: Core ML's own, which says where operations run; without it where = "unknown" for all.
    """
    names = mil.functions(artifact.path)
    views = {name: View.of(mil.load(artifact.path, name)) for name in names}
    given = artifact.options.get("modules", {})
    modules: Mapping[str, str] = given if isinstance(given, Mapping) else {}
    planned: Mapping[str, Mapping[str, Planned]] = plan.functions if isinstance(plan, Plan) else {}
    nodes = tuple(
        _placed(
            o,
            o.output if len(names) == 1 else f"{name}/{o.output}",
            planned.get(name, {}).get(o.output),
            source_module(o, modules),
        )
        for name, view in views.items()
        for o in view.operations
    )
    if isinstance(plan, Plan):
        source = f"MLComputePlan, {plan.machine} (a plan of this machine; another one may decide otherwise)"
    else:
        source = SOURCE if sys.platform != "darwin" else f"{SOURCE}; {plan.reason}"
    return Placement(source, nodes, advice=advise(views))


def _placed(operation: mil.MilOperation, name: str, found: Planned | None, module: str) -> Placed:
    if found is None:
        return Placed(name, operation.type, "unknown", "Core ML", "decided on the device", module)
    if found.unit != CPU:
        return Placed(name, operation.type, "accelerated", found.unit, "", module)
    others = [unit for unit in found.able if unit != CPU]
    reason = f"Core ML prefers it to {' and '.join(others)}" if others else "nothing else computes it"
    return Placed(name, operation.type, "fallback", CPU, reason, module)


def advise(views: Mapping[str, View]) -> tuple[str, ...]:
    """Each rule with what it speaks about in the functions of a package, and the share of work that none sends away."""
    return (
        *(_line(rule, views) for rule in RULES),
        *(_work(name, view, len(views) > 1) for name, view in views.items()),
    )


def _line(rule: Rule, views: Mapping[str, View]) -> str:
    found = {name: rule.find(view) for name, view in views.items()}
    told = [(f"in {name} " if len(views) > 1 else "") + _named(names) for name, names in found.items() if names]
    about = f"concerns {'; '.join(told)}" if told else "concerns nothing here"
    return f"[{rule.grade}] {rule.text}: {about} ({rule.source}; not verified on hardware)"


def _named(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(found[:_SHOWN])}{more}"


def _work(name: str, view: View, several: bool) -> str:
    spoken = {found.partition(" ")[0] for rule in RULES if rule.leaves for found in rule.find(view)}
    total, left = work(view.operations, view.constants, spoken, bool(flexible(view)))
    share = f"{100 * left / total:.1f} %" if total else "none"
    where = f" of {name}" if several else ""
    return (
        f"[estimate] {share} of the {total / 1e6:.6g} million floating-point operations{where} are in operations that "
        "none of these rules sends elsewhere (from declared shapes; it says nothing about placement)"
    )


def source_module(operation: mil.MilOperation, modules: Mapping[str, str]) -> str:
    """The source module of an operation; "" when a pass made it. Names are `<node>__<operation>` (emit.emitter)."""
    node = operation.output.rpartition("__")[0]
    return modules.get(node, "")
