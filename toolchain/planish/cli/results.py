"""Verdicts as people read them: one row per target, then everything that is not fine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from planish.away import delegation
from planish.cli.console import out
from planish.compiled import TargetResult
from planish.form import cosine, milliseconds, size, small
from planish.verdict import Failed, Metric, NotRun, Passed, Verdict
from planish_targets.contract import Evidence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {"passed": "green", "FAILED": "bold red", "refused": "bold red", "not run": "yellow"}


class Results(Protocol):
    """What a compile and a verify have in common."""

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """Checks that all targets share."""
        ...

    @property
    def targets(self) -> Sequence[TargetResult]:
        """One per target."""
        ...

    @property
    def failed(self) -> Sequence[tuple[str, Failed]]:
        """(target or what is shared, gate) for everything that failed."""
        ...


def show_results(results: Results, sizes: Mapping[str, int], title: str) -> None:
    """Print the table, and below it each failed gate, each check that did not run, and what leaves the accelerator."""
    console = out()
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    if results.targets:
        console.print(verdict_table(results.targets, sizes))
        console.print(_legend(results.targets), style="dim", soft_wrap=True)
    for name, verdict in results.failed:
        _show_failure(console, name, verdict)
    for result in results.targets:
        for open_question in (v for v in result.verdicts if isinstance(v, NotRun)):
            _line(console, "not run", "yellow", f"{result.target}, {open_question.check}: {open_question.reason}")
        _show_placement(console, result)


def verdict_table(targets: Sequence[TargetResult], sizes: Mapping[str, int]) -> Table:
    """Target, size, evidence, quality (where it was measured), lowering error, latency, verdict; fits 80 columns."""
    from rich.table import Table
    from rich.text import Text

    quality = _has_quality(targets)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("target")
    for heading in ("size", "evidence", *(("cosine", "max abs") if quality else ()), "lowering", "latency"):
        table.add_column(heading, justify="left" if heading == "evidence" else "right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    timed = timed_case(targets)
    for result in targets:
        word = verdict_word(result)
        measured = (cosine(_value(result, "quality", "cosine")), small(_value(result, "quality", "max_abs")))
        table.add_row(
            Text(result.target.replace(":", ":\n  ").replace("/", "\n  ")),
            size(sizes[result.target]) if result.target in sizes else "-",
            str(evidence(result)).replace("-arm64-", "-\narm64-\n"),
            *(measured if quality else ()),
            small(_value(result, "lowering", "max_abs")),
            milliseconds(result.latency.get(timed, max(result.latency.values(), default=None))),
            Text(word, STYLES[word]),
        )
    return table


def verdict_word(result: TargetResult) -> str:
    """`refused`: no artifact; `not run`: nothing compared its outputs; else `passed` or `FAILED`."""
    if result.artifact is None:
        return "refused"
    if any(isinstance(v, Failed) for v in result.verdicts):
        return "FAILED"
    return "passed" if any(isinstance(v, Passed) and v.check == "lowering" for v in result.verdicts) else "not run"


def evidence(result: TargetResult) -> Evidence:
    """How the artifact itself was examined: the grade of the check that ran it, never that of the program's checks."""
    if result.artifact is None:
        return Evidence.NOT_RUN
    ran = next((v for v in result.verdicts if v.check == "lowering"), None)
    if isinstance(ran, (Passed, Failed)):
        return ran.evidence
    checked = any(v.check in ("weights", "placement") and not isinstance(v, NotRun) for v in result.verdicts)
    return Evidence.STRUCTURAL if checked else Evidence.NOT_RUN


def timed_case(targets: Sequence[TargetResult]) -> str:
    """A case that every timed target ran, the slowest of the first; empty when there is none."""
    timed = [t.latency for t in targets if t.latency]
    common = set.intersection(*map(set, timed)) if timed else set()
    return max(sorted(common), key=lambda case: timed[0][case], default="")


def artifact_sizes(targets: Sequence[TargetResult]) -> dict[str, int]:
    """Target -> bytes of its artifact, while the files are there."""
    return {t.target: t.artifact.nbytes() for t in targets if t.artifact is not None}


def results_to_json(results: Results, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Every verdict; the failed gates once more in `failed`."""
    from planish.bundle import verdict_to_json

    return {
        "failed": [{"target": name, **verdict_to_json(v)} for name, v in results.failed],
        "verdicts": [verdict_to_json(v) for v in results.verdicts],
        "targets": [_target_to_json(t, sizes.get(t.target)) for t in results.targets],
    }


def _target_to_json(result: TargetResult, count: int | None) -> dict[str, Any]:
    from planish.bundle import verdict_to_json

    placement = result.placement
    return {
        "target": result.target,
        "result": verdict_word(result).lower(),
        "evidence": evidence(result),
        "bytes": count,
        "verdicts": [verdict_to_json(v) for v in result.verdicts],
        "latency": {"device": result.latency_device, "seconds": result.latency},
        "inputs": result.shapes,
        "placement": placement
        and {
            "source": placement.source,
            **delegation(placement),
            "away": [n for n in placement.nodes if n.where != "accelerated"],
            "violations": placement.violations,
            "advice": placement.advice,
        },
        "notes": result.artifact.notes if result.artifact else (),
    }


def _value(result: TargetResult, check: str, metric: str) -> float | None:
    verdict = next((v for v in result.verdicts if v.check == check), None)
    metrics: Sequence[Metric] = () if verdict is None or isinstance(verdict, NotRun) else verdict.metrics
    return next((m.value for m in metrics if m.name == metric), None)


def _has_quality(targets: Sequence[TargetResult]) -> bool:
    return any(_value(t, "quality", "cosine") is not None for t in targets)


def _legend(targets: Sequence[TargetResult]) -> str:
    lines = []
    if _has_quality(targets):
        lines.append("cosine, max abs: the program as this target computes it, to the original model")
    lines.append("lowering: largest error of the artifact, to that program")
    case = timed_case(targets)
    if any(t.latency for t in targets):
        which = f"the case {case!r}" if case else "each target's slowest case (their shapes differ)"
        lines.append(f"latency: one call of {which} on this machine, not on a phone")
    return "\n".join(lines)


def _show_failure(console: Console, name: str, verdict: Failed) -> None:
    _line(console, "FAILED", "bold red", f"{name}, {verdict.check}: {verdict.reason}")
    for metric in verdict.metrics:
        if not metric.ok:
            sign = ">" if metric.at_most else "<"
            case = f" (case {metric.case})" if metric.case else ""
            console.print(f"    {metric.name} {metric.value:.6g} {sign} limit {metric.limit:.6g}{case}", soft_wrap=True)
    if verdict.diverged is not None:
        at = verdict.diverged
        place = f"{at.module or at.node}: {at.op} ({at.node}), relative error {at.relative_error:.3g}"
        console.print(f"    first diverges in {place}", soft_wrap=True)


def _show_placement(console: Console, result: TargetResult) -> None:
    away = [n for n in result.placement.nodes if n.where == "fallback"] if result.placement else []
    if result.placement is None or not away:
        return
    reasons = "; ".join(dict.fromkeys(f"{n.op}: {n.reason or n.where}" for n in away[:3]))
    more = f"; and {len(away) - 3} more (report.json)" if len(away) > 3 else ""
    count = f"{len(away)} of {len(result.placement.nodes)} operations leave the accelerator"
    linear = result.placement.linear_share()
    if linear is not None:
        count += f", with {1 - linear:.1%} of the multiply-accumulates of weights"
    _line(console, "placed", "yellow", f"{result.target}: {count}; {reasons}{more}")


def _line(console: Console, label: str, style: str, text: str) -> None:
    console.print(label, style=style, end="  ")
    console.print(text, soft_wrap=True)
