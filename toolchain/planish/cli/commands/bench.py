"""planish bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, err, out, results_only
from planish.cli.guard import GATE, Told, UsageError, tell
from planish.cli.progress import progress

if TYPE_CHECKING:
    from planish.bench.lint import Problem
    from planish.bench.schema import Bench, Row
    from planish.bench.store import Stored


def bench_command(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE...]", help="Folders NAME.planish.", show_default=False)
    ] = None,
    targets: options.Targets = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the measurements, for --import.")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="KEY.pem", help="Sign them with this private key: -o becomes a folder."),
    ] = None,
    threads: Annotated[
        list[str] | None, typer.Option(metavar="N[,N...]", help="Threads of the runtime.  [default: 1]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, max=1000, metavar="N", help="Processes of each artifact, in turn.")] = 5,
    calls: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, metavar="N", help="Timed calls per process.  [default: 10; texts: 3]"),
    ] = None,
    warmups: Annotated[int, typer.Option(min=0, max=1000, metavar="N", help="Calls before them.")] = 2,
    prompt: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a prompt.")] = 128,
    new: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens that are written behind it.")] = 32,
    cold: Annotated[
        bool, typer.Option("--cold/--no-cold", help="Also load with an empty page cache (Linux): more processes.")
    ] = True,
    sustained: Annotated[
        float, typer.Option(min=0.0, max=1440.0, metavar="MINUTES", help="Then run each without a pause.")
    ] = 0.0,
    runner: options.RunnerPairs = None,
    timeout: Annotated[float, typer.Option(min=0.001, max=1e6, metavar="SECONDS", help="Limit of a process.")] = 600.0,
    take: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Take measurements, such as a device's, into the BUNDLE."),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="PUB.pem", help="With --import: who must have signed; repeatable."),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option("--lint", metavar="FILE", help="Tell what makes a file of measurements unbelievable; repeatable."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure artifacts on this machine: cold and warm load, latency or tokens per second, memory.

    Every artifact runs in processes of its own, several of them in turn, so that a busy moment hits all alike. Language
    models read prompts and write; all others are called with the inputs that the bundle stores. Percentiles need 20
    samples, ratios are taken round by round; temperature and energy are measured where the system tells them.

    \b
    Examples:
      planish bench my-model-int8.planish
      planish bench m-float.planish m-int8.planish -t onnxruntime --threads 1,2
      planish bench my-llm-int4.planish --prompt 256 --new 64 --sustained 5
      planish bench my-model-int8.planish -o host.json; planish bench --lint host.json
      planish bench my-model-int8.planish --import pixel8.json     # shown by planish report, as unsigned
      planish bench my-model-int8.planish --import pixel8 --key device.pub.pem
    """
    if check:
        _only(check, "--lint", bundles=bundles, take=take, output=output)
        return _lint(check, as_json)
    if not bundles:
        raise UsageError("No bundle is given.", "BUNDLE", "planish bench NAME.planish, or --lint FILE")
    if take is not None:
        if len(bundles) > 1:
            raise UsageError("Measurements go into one bundle.", "BUNDLE", "planish bench NAME.planish --import FILE")
        _only(take, "--import", output=output, sign=sign)
        return _import(bundles[0], take, key, as_json)
    if key:
        raise UsageError("--key says whose measurements to --import.", "--key", "--sign KEY.pem signs new ones")
    if sign is not None and output is None:
        raise UsageError("A signature needs a place.", "--sign", "name a folder with -o")
    counts = _counts(threads)
    with progress(quiet) as shown, results_only(verbose):
        shown.stage("start", "torch")
        from planish.bench.process import Plan
        from planish.bench.run import bench
        from planish.bench.store import write
        from planish.bench.subjects import subjects
        from planish.language import TASK
        from planish.trust.evidence import whole
        from planish.trust.sign import KeySigner
        from planish.verify.lowering import Execution
        from planish_passes.errors import PlanishError

        asked, commands = options.known_targets(options.names(targets)), options.pairs(runner, "--runner")
        options.check_commands(commands)
        opened = [whole(path) for path in bundles]  # what is measured is what the manifest names
        found = list(subjects(opened, asked, Execution(counts[0], timeout, commands)))
        left = [one for one in found if isinstance(one, str)]
        chosen = [one for one in found if not isinstance(one, str)]
        if not chosen:
            raise PlanishError(f"Nothing can be measured here ({'; '.join(left)}).", str(bundles[0]), "planish doctor")
        texts = any(b.manifest.task == TASK for b in opened)
        plan = Plan(rounds, warmups, calls or (3 if texts else 10), prompt, new, cold)
        made, missing = bench(chosen, plan, counts, sustained, shown)
        at = write(made, output, KeySigner(sign) if sign else None) if output is not None else None
    if as_json:
        emit_json(made.model_dump(mode="json"))
    else:
        _show(made, (*left, *missing), at)
    return None


def _only(given: object, option: str, **others: object) -> None:
    if odd := [name for name, value in others.items() if value]:
        names = {"take": "--import", "bundles": "BUNDLE", "output": "-o", "sign": "--sign"}
        raise UsageError(f"{option} and {names[odd[0]]} do not belong together.", option, f"leave {names[odd[0]]} out")


def _counts(given: list[str] | None) -> tuple[int, ...]:
    found = options.names(given) or ("1",)
    if odd := [text for text in found if not text.isdecimal() or not 1 <= int(text) <= 256]:
        raise UsageError(f"{odd[0]!r} is no number of threads.", "--threads", "give numbers from 1 to 256: 1,2,4")
    return tuple(dict.fromkeys(map(int, found)))


def _lint(files: list[Path], as_json: bool) -> None:
    from planish.bench.lint import lint
    from planish.bench.schema import LARGEST
    from planish.bench.store import read

    with results_only():
        found = {str(file): lint(read(file)[0][:LARGEST]) for file in files}
    count = sum(map(len, found.values()))
    if as_json:
        emit_json({"ok": not count, "problems": found})
    else:
        for file, problems in found.items():
            _tell_problems(file, problems)
    if count:
        tell(Told(f"{count} problem{'s' if count > 1 else ''}.", ", ".join(found), "docs/bench.md explains each rule"))
        raise typer.Exit(GATE)


def _tell_problems(file: str, problems: list[Problem]) -> None:
    console = out()
    if not problems:
        console.print(f"{file}: nothing contradicts itself", style="green", soft_wrap=True)
    for problem in problems:
        console.print(f"{file}: {problem.where}: {problem.what}", style="red", soft_wrap=True)


def _import(bundle: Path, place: Path, keys: list[Path] | None, as_json: bool) -> None:
    with results_only():
        from planish.bench.store import take
        from planish.bundle import open_bundle

        stored = take(open_bundle(bundle), place, options.trusted(keys, None, None, None))
    if as_json:
        emit_json({"ok": True, "bundle": bundle, **_stored(stored)})
        return
    style = "green" if stored.checked else "yellow"
    out().print(f"{len(stored.bench.rows)} rows of {stored.bench.environment.device}: {stored.signed}", style=style)
    out().print(f"planish report {bundle} shows them", style="dim", soft_wrap=True)


def _stored(stored: Stored) -> dict[str, Any]:
    return {
        "device": stored.bench.environment.device,
        "rows": len(stored.bench.rows),
        "signed": stored.signed,
        "checked": stored.checked,
        "name": stored.name,
    }


def _show(made: Bench, missing: tuple[str, ...], at: Path | None) -> None:
    from rich.table import Table

    console, several = out(), len(made.subjects) > 1
    for subject in made.subjects:
        console.print(f"{subject.id}  {subject.bundle}, {subject.target}", style="bold", end="  ", soft_wrap=True)
        console.print(f"{subject.runtime}, {subject.evidence}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "what", "input", "threads"):
        table.add_column(title)
    for title in ("median", "p95", "spread", "n", "rate"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in sorted(made.rows, key=lambda r: (r.threads, r.subject)):
        table.add_row(row.subject, row.measure.replace("_", " "), row.case, str(row.threads), *_values(row))
    console.print()
    console.print(table)
    for ratio in made.ratios:
        text = f"{ratio.measure.replace('_', ' ')} {ratio.case}".strip()
        told = f"{ratio.median:.3f} times {ratio.to} ({ratio.low:.3f} to {ratio.high:.3f}, {ratio.pairs} pairs)"
        console.print(f"{ratio.of} needs {told}: {text}, threads: {ratio.threads}", soft_wrap=True)
    for run in made.sustained:
        text = f"{run.seconds:.0f} s without a pause: {run.drift:+.1%} at the end ({len(run.windows)} windows)"
        console.print(f"{run.subject if several else ''} {run.measure}, {text}".strip(), soft_wrap=True)
    machine = made.environment
    console.print(
        f"{machine.device}, {machine.processor}; thermal: {machine.thermal}; energy: {machine.energy}",
        style="dim",
        soft_wrap=True,
    )
    if any(s.evidence != "executed" for s in made.subjects):
        console.print("note: times of a stand-in (emulated) say nothing about the target", style="yellow")
    for note in (*machine.notes, *missing):
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    if at is not None:
        console.print("measurements", style="bold", end="  ")
        console.print(str(at), soft_wrap=True)
    err().print("a machine's figures, not a phone's", style="dim")


def _values(row: Row) -> tuple[str, ...]:
    from planish.form import milliseconds, size

    def shown(value: float | None) -> str:
        if value is None:
            return "-"
        return size(int(value)) if row.unit == "bytes" else milliseconds(value)

    rate = "" if row.rate is None else f"{row.rate.value:,.1f} tokens/s"
    return shown(row.median), shown(row.p95), shown(row.spread), str(row.n), rate
