"""A record in sentences: what was refused, by whom, at which node and line of the model, and why."""

from __future__ import annotations

from collections.abc import Iterator

from planish.failures.record import FailedGate, Finding, Record, Refused

_REFUSED = 12  # lines of what passes left as it was
Row = tuple[str, str]  # label (empty: goes on), text

_ENDS = {
    "failed": "could not be done",
    "gate failed": "ended, but a gate failed",
    "interrupted": "was interrupted",
    "out of memory": "ran out of memory",
    "out of disk": "ran out of space on the disk",
    "running": "was ended from outside (kill -9, or the system when memory ran out): it had no time to say why",
}
_CHECKS = {
    "capture": "the traced program computes something else than the model",
    "weights": "the integers are not those that the recipe makes of the model's weights",
    "quality": "the program, as this target rounds it, is too far from the original model",
    "lowering": "the artifact computes something else than the program that it was made from",
    "placement": "too much leaves the accelerator, or breaks one of the target's rules",
    "lower": "the target refused the program",
    "size": "the artifact is too large",
    "tokenizer": "the runtime's own tokenizer splits texts otherwise than the model's",
}


def title(record: Record) -> str:
    """One line: what was asked, and how it ended."""
    model = record.model.architecture if record.model else "the model"
    asked = f"{model} for {', '.join(record.request.get('targets', ()))}, recipe {record.request.get('recipe')}"
    return f"The compile of {asked} {_ENDS[record.ended]}, in stage {record.stage}."


def rows(record: Record) -> Iterator[Row]:
    """Everything that is known, as labelled lines."""
    yield "output", record.output
    yield "began", record.began
    names = list(dict.fromkeys(name for name, _ in record.stages))
    yield "stages", " > ".join(names)
    estimate = next((detail for name, detail in record.stages if name == "estimate"), "")
    if record.ended in ("out of memory", "out of disk", "running") and estimate:
        yield "estimate", estimate
    for finding in record.findings:
        yield from _finding(finding)
    refusals = {f.target for f in record.findings}
    for gate in record.gates:
        if not (gate.check == "lower" and gate.target.partition("/")[0] in refusals):
            yield from _gate(gate)
    yield from _refused(record)


def _finding(finding: Finding) -> Iterator[Row]:
    yield "", ""
    if finding.target:
        yield "target", finding.target
    yield "what", finding.what
    if finding.where:
        yield "where", finding.where
    if finding.pass_name:
        yield "pass", finding.pass_name + (f" (after {', '.join(finding.ran)})" if finding.ran else " (the first)")
    if finding.node:
        yield "node", f"{finding.node} ({finding.op})"
        yield "module", finding.module or "(top)"
    if finding.source:
        yield "source", finding.source
    for number, line in enumerate(finding.graph):
        yield "" if number else "graph", line
    if finding.hint:
        yield "hint", finding.hint


def _gate(gate: FailedGate) -> Iterator[Row]:
    yield "", ""
    yield "target", gate.target
    yield "check", f"{gate.check}: {_CHECKS.get(gate.check, 'see docs/report.md')}"
    yield "why", gate.reason
    for number, metric in enumerate(gate.metrics):
        yield "" if number else "worst", metric
    if gate.node:
        yield "node", f"{gate.node} ({gate.op})" + (f", relative error {gate.error:.2g}" if gate.error else "")
        yield "module", gate.module or "(top)"
    for number, line in enumerate(gate.drift):
        yield "" if number else "drift", line


def _refused(record: Record) -> Iterator[Row]:
    if not record.refused:
        return
    yield "", ""
    kinds: dict[tuple[str, str], list[Refused]] = {}
    for row in record.refused:
        kinds.setdefault((row.pass_name, row.reason), []).append(row)
    told = list(kinds.items())
    for number, ((name, reason), found) in enumerate(told[:_REFUSED]):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        module = f" in {found[0].module}" if found[0].module else ""
        yield "" if number else "left", f"{name} left {found[0].node}{module}{more}: {reason}"
    if len(told) > _REFUSED:
        yield "", f"and {len(told) - _REFUSED} more kinds; --json has all"
