"""planish build"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, err, out
from planish.cli.guard import FAILED, GATE, UsageError
from planish.cli.output import exit_on_sigterm

if TYPE_CHECKING:
    from planish.matrix.facts import Facts
    from planish.matrix.plan import Step
    from planish.matrix.run import Executor, Outcome

_STYLES = {
    "built": "green",
    "from cache": "green",
    "up to date": "dim",
    "gate failed": "bold red",
    "failed": "bold red",
}
_PLANS = {"none": "up to date", "restore": "from cache", "build": "compile", "impossible": "failed"}
_REASONS = 4  # that one line holds


def build_command(
    file: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="The file that lists models, recipes and targets.")
    ] = Path("planish.toml"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Bundle, model or recipe; * and ? match; repeatable."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Compiles at the same time.  [default: 1; ray: as CPUs]"),
    ] = None,
    executor: Annotated[str, typer.Option(metavar="local|ray", help="Where compiles run.")] = "local",
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", help="Cache folder, or a shared one (s3://, file://, ...) behind the local one."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compile all, whatever the cache holds.")] = False,
    twice: Annotated[
        bool, typer.Option("--twice", help="Compile each bundle once more, and tell which bytes differ, and why.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--plan", "-n", help="Tell what would be done, and why.")
    ] = False,
    why: Annotated[
        str | None, typer.Option(metavar="NAME", help="Tell every input of a bundle, and what changed since last time.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make all bundles of a file that are not up to date.

    A bundle is made again when one of its inputs changed: a file of the model, the request, the recipe, planish, a
    package that takes part, the machine. Bundles that were made before, here or on another machine with the same cache,
    are copied. Jobs are independent: when one fails, the others go on.

    \b
    Examples:
      planish build                                  all of planish.toml
      planish build --plan                           what would be done, and why
      planish build --only 'minilm-*' --jobs 2
      planish build --why minilm-int8
      planish build --cache s3://team/planish        shared with other machines
      planish build --executor ray --jobs 8          on a Ray cluster (RAY_ADDRESS)

    \b
    planish.toml:
      recipes = ["float", "int8"]          # for every model
      targets = ["onnxruntime", "coreml"]  # and every other key of `planish compile`
      output = "dist"                      # dist/minilm-int8.planish, ...
      [recipe.int8.gates]                  # what one recipe changes
      cosine = 0.995
      [[model]]
      model = "./minilm"
      [[model]]
      name = "llm"
      model = "./smollm2.gguf"
      recipes = ["int4"]                   # what one model changes
    """
    from planish.matrix.work import Work

    shown = _Lines(quiet)
    work = Work.open(file, cache, lambda text: shown.say("", f"note: {text}"))
    steps = work.plan(work.select([why] if why is not None else only or ()), force)
    if why is not None:
        _show_inputs(steps, as_json)
    elif dry_run:
        _show_plan(steps, as_json)
    if why is not None or dry_run:
        raise typer.Exit(FAILED if any(step.action == "impossible" for step in steps) else 0)
    where, room = _executor(executor, work.facts)
    with exit_on_sigterm():
        outcomes = work.run(steps, where, shown, jobs or room, twice, shown.done)
    if as_json:
        emit_json(_to_json(outcomes))
    else:
        _show(outcomes)
    statuses = {outcome.status for outcome in outcomes}
    if "failed" in statuses:
        raise typer.Exit(FAILED)
    if "gate failed" in statuses:
        raise typer.Exit(GATE)


def _executor(name: str, facts: Facts) -> tuple[Executor, int]:
    """Where compiles run, and how many at the same time unless it is said."""
    if name == "local":
        from planish.matrix.run import Local

        return Local(), 1
    if name == "ray":
        from planish.matrix.cluster import Cluster

        cluster = Cluster(facts)
        return cluster, cluster.room
    raise UsageError(f"There is no executor {name!r}.", "--executor", "local or ray")


class _Lines:
    """A line on stderr for each thing that happens, with the name of its job."""

    def __init__(self, quiet: bool) -> None:
        self._console = None if quiet else err()

    def say(self, job: str, line: str) -> None:
        """See planish.matrix.run.Shown."""
        if self._console is not None and line:
            self._console.print(f"{job} | {line}" if job else line, soft_wrap=True)

    def done(self, outcome: Outcome) -> None:
        """How a job ended, unless there was nothing to do."""
        if outcome.status != "up to date":
            self.say(outcome.step.job.name, f"{outcome.status} ({outcome.seconds:.1f} s)")


def _show(outcomes: Sequence[Outcome]) -> None:
    """One row per bundle, then what is not fine."""
    from rich.table import Table
    from rich.text import Text

    console = out()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("bundle", "status", "time", "size", "targets"):
        table.add_column(heading, justify="right" if heading in ("time", "size") else "left")
    for outcome in outcomes:
        time = f"{outcome.seconds:.1f} s" if outcome.seconds else "-"
        table.add_row(
            Text(outcome.step.job.name),
            Text(outcome.status, _STYLES[outcome.status]),
            time,
            _size(outcome.summary),
            _targets(outcome),
        )
    console.print(table)
    for outcome in outcomes:
        for note in outcome.notes:
            console.print(f"note: {outcome.step.job.name}: {note}", style="dim", soft_wrap=True)
        for told in _bytes(outcome):
            console.print(f"bytes: {outcome.step.job.name}: {told}", soft_wrap=True)
        for gate in (outcome.summary or {}).get("failed", ()) if outcome.status == "gate failed" else ():
            console.print("FAILED", style="bold red", end="  ")
            console.print(
                f"{outcome.step.job.name}: {gate['target']} {gate['check']}: {gate['reason']}", soft_wrap=True
            )
        if outcome.error is not None:
            console.print("FAILED", style="bold red", end="  ")
            console.print(f"{outcome.step.job.name}: {outcome.error.what}", soft_wrap=True)
            console.print(f"  where: {outcome.error.where}\n  hint: {outcome.error.hint}", soft_wrap=True)


def _bytes(outcome: Outcome) -> list[str]:
    if outcome.bytes is None:
        return []
    return [
        f"{d.file}: {d.count} of {d.size} bytes differ, from byte {d.first} on ({d.why})" for d in outcome.bytes
    ] or ["a second compile wrote the same artifacts"]


def _targets(outcome: Outcome) -> str:
    summary = outcome.summary
    if summary is None:
        return ", ".join(outcome.step.job.request.targets)
    failed = {gate["target"] for gate in summary["failed"]}
    return ", ".join(
        f"{t['target']} {'FAILED' if t['target'] in failed else t['evidence']}" for t in summary["targets"]
    )


def _size(summary: Mapping[str, Any] | None) -> str:
    from planish.form import size

    known = [t["bytes"] for t in (summary or {}).get("targets", ()) if t["bytes"] is not None]
    return size(sum(known)) if known else "-"


def _show_plan(steps: Sequence[Step], as_json: bool) -> None:
    if as_json:
        emit_json({"jobs": [_plan_to_json(step) for step in steps]})
        return
    console = out()
    width = max(len(step.job.name) for step in steps)
    for step in steps:
        reasons = [step.error.what] if step.error is not None else list(step.reasons)
        more = f"; and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
        told = f"{step.job.name:{width}}  {_PLANS[step.action]:10}  {'; '.join(reasons[:_REASONS])}{more}"
        console.print(told.rstrip(), soft_wrap=True)


def _show_inputs(steps: Sequence[Step], as_json: bool) -> None:
    if as_json:
        emit_json({"jobs": [{**_plan_to_json(step), "inputs": step.inputs and step.inputs.data} for step in steps]})
        return
    console = out()
    for step in steps:
        console.print(f"{step.job.name}: {_PLANS[step.action]}", style="bold", soft_wrap=True)
        for reason in [step.error.what] if step.error is not None else step.reasons:
            console.print(f"  {reason}", style="yellow", soft_wrap=True)
        if step.inputs is not None:
            console.print(f"  key {step.inputs.key}", soft_wrap=True)
            for name, value in _rows(step.inputs.data):
                console.print(f"    {name} = {value}", style="dim", soft_wrap=True)


def _rows(data: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{above}{name}.")
        elif value is not None:
            rows.append((f"{above}{name}", str(value)))
    return rows


def _plan_to_json(step: Step) -> dict[str, Any]:
    return {
        "name": step.job.name,
        "bundle": step.job.output,
        "action": _PLANS[step.action],
        "reasons": step.reasons,
        "key": step.inputs and step.inputs.key,
        "error": step.error,
    }


def _to_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    jobs = [
        {
            **_plan_to_json(o.step),
            "action": o.status,
            "seconds": round(o.seconds, 3),
            "error": o.error,
            "notes": o.notes,
            "bytes": o.bytes,
            "result": o.summary,
        }
        for o in outcomes
    ]
    return {"ok": all(o.status not in ("failed", "gate failed") for o in outcomes), "jobs": jobs}
