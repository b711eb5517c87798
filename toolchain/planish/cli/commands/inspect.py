"""planish inspect"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only
from planish.cli.guard import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from planish.inspect import ArtifactFacts, BundleFacts, Facts, ModelFacts, PlacementFacts
    from planish_targets.cost import Method

_MOST = 12  # operators and reasons that are shown; --json has all


def inspect_command(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="Model folder, .gguf, hub id, bundle, or artifact.", show_default=False),
    ],
    targets: options.Targets = None,
    view: Annotated[bool, typer.Option("--view", help="Open it in Netron, in the browser; Ctrl-C ends it.")] = False,
    as_json: options.Json = False,
) -> None:
    """Describe a model, a bundle or an artifact: operators, dtypes, sizes, inputs and outputs, placement.

    \b
    Examples:
      planish inspect ./my-model                  can it be compiled, and as what?
      planish inspect my-model-int8.planish       a folder, or packed
      planish inspect my-model-int8.planish -t coreml --view
      planish inspect model.onnx --json
    """
    with results_only():
        from planish.bundle.unpack import is_packed, unpacked
        from planish.inspect import BundleFacts, inspect

        packed = Path(path).expanduser()
        if is_packed(packed):
            if view:
                raise UsageError(
                    "A packed bundle has no file that Netron can open.", "--view", f"planish unpack {path}"
                )
            with unpacked(packed) as folder:
                found = inspect(str(folder), options.names(targets))
            facts = replace(found, path=packed) if isinstance(found, BundleFacts) else found
        else:
            facts = inspect(path, options.names(targets))
    if as_json:
        emit_json(to_json(facts))
    else:
        show(facts)
    if view:
        from planish.cli.view import view as open_in_browser
        from planish.cli.view import viewable

        file = viewable(facts, path)
        with results_only(verbose=True):
            open_in_browser(file)


def to_json(facts: Facts) -> dict[str, Any]:
    """The facts as JSON values, with their `kind`."""
    from planish.inspect import BundleFacts, ModelFacts

    if isinstance(facts, ModelFacts):
        return {
            "kind": "model",
            "supported": facts.refusal is None,
            "weight_bytes": facts.weight_bytes,
            **{name: getattr(facts, name) for name in type(facts).__dataclass_fields__},
        }
    if isinstance(facts, BundleFacts):
        manifest = facts.manifest.model_dump(mode="json")
        added = {"signature": facts.signature or None, "evidence": facts.evidence}
        return {"kind": "bundle", "path": facts.path, "manifest": manifest, "artifacts": facts.artifacts, **added}
    return {"kind": "artifact", "artifacts": facts}


def show(facts: Facts) -> None:
    """Print the facts."""
    from planish.inspect import BundleFacts, ModelFacts

    console = out()
    if isinstance(facts, ModelFacts):
        _show_model(console, facts)
    elif isinstance(facts, BundleFacts):
        _show_bundle(console, facts)
    else:
        for artifact in facts:
            _show_artifact(console, artifact, ", ".join(artifact.targets))


def _show_model(console: Console, facts: ModelFacts) -> None:
    from planish.form import size

    console.print(facts.location, style="bold", soft_wrap=True)
    _row(console, "architecture", f"{facts.architecture or 'not named'} ({facts.model_type or 'no model_type'})")
    if facts.refusal is None:
        _row(console, "task", facts.task)
        parameters = facts.parameters or 0
        _row(console, "parameters", f"{parameters / 1e6:.1f} million" if parameters >= 1e5 else str(parameters))
        kinds = ", ".join(f"{dtype} {size(count)}" for dtype, count in facts.dtypes.items())
        _row(console, "weights", f"{size(facts.weight_bytes)} ({kinds})")
    if facts.revision:
        _row(console, "revision", facts.revision)
    config = {k: v for k, v in facts.config.items() if isinstance(v, (int, float, str)) and k not in _TOLD}
    _row(console, "config", ", ".join(f"{k} {v}" for k, v in sorted(config.items())))
    _row(console, "files", ", ".join(f"{name} {size(count)}" for name, count in facts.files.items()))
    if facts.refusal is None:
        _row(console, "supported", f"yes: planish compile {facts.location}", "green")
        return
    _row(console, "supported", f"no: {facts.refusal.what}", "red")
    _row(console, "where", facts.refusal.where)
    _row(console, "hint", facts.refusal.hint)


_TOLD = frozenset({"model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path"})


def _show_bundle(console: Console, facts: BundleFacts) -> None:
    manifest = facts.manifest
    console.print(manifest.name, style="bold", end="  ")
    console.print(str(facts.path), soft_wrap=True)
    source = manifest.source
    revision = f" at {source.revision}" if source.revision else ""
    _row(
        console,
        "source",
        f"{source.location}{revision}, {source.architecture}, licence {source.license.id or 'not named'}",
    )
    _row(console, "task", manifest.task)
    _row(console, "recipe", manifest.recipe.name)
    _row(console, "made", f"{manifest.created} by planish {manifest.planish}")
    made = [entry for entry in manifest.targets.values() if entry.artifact is not None]
    unrun = "; no artifact was run" if made and all(e.evidence == "not-run" for e in made) else ""
    _row(console, "result", f"{manifest.result}{unrun}", "green" if manifest.result == "passed" else "red")
    _row(
        console,
        "signature",
        f"{facts.signature} (not checked: planish verify --signature)" if facts.signature else "none",
    )
    if facts.evidence:
        _row(console, "evidence", f"of devices, for {', '.join(dict.fromkeys(facts.evidence))} (not checked)")
    for name, entry in manifest.targets.items():
        if name in facts.artifacts:
            console.print()
            axes = ", ".join(f"{axis} {limit.min} to {limit.max}" for axis, limit in entry.axes.items())
            ports = [
                [f"{p.name}: {p.dtype}[{', '.join(map(str, p.shape))}]" for p in side]
                for side in (entry.inputs, entry.outputs)
            ]
            told = "not run" if (entry.result, entry.evidence) == ("passed", "not-run") else entry.result
            _show_artifact(console, facts.artifacts[name], f"{name}: {told}", (ports[0], ports[1]), axes)
        elif entry.artifact is None:
            console.print(f"\n{name}: no artifact", style="bold red")


def _show_artifact(
    console: Console,
    facts: ArtifactFacts,
    title: str,
    ports: tuple[list[str], list[str]] | None = None,
    axes: str = "",
) -> None:
    from planish.form import size

    inputs, outputs = ports or (facts.inputs, facts.outputs)
    console.print(title, style="bold cyan", end="  ")
    console.print(f"{facts.path.name}, {facts.format}, {size(facts.bytes)}", soft_wrap=True)
    _row(console, "inputs", ", ".join(inputs))
    _row(console, "outputs", ", ".join(outputs))
    if axes:
        _row(console, "axes", axes)
    total = sum(facts.ops.values())
    _row(console, "operators", f"{total} of {len(facts.ops)} types: {_counted(facts.ops)}")
    _row(console, "constants", ", ".join(f"{dtype} {size(count)}" for dtype, count in facts.dtypes.items()) or "none")
    for placement in facts.placements:
        _show_placement(console, placement)
    for name, reason in facts.unplaced.items():
        _row(console, "placement", f"{name}: unknown, {reason}", "yellow")


def _show_placement(console: Console, placement: PlacementFacts) -> None:
    share = f"{placement.share:.0%} of {placement.operations} operations accelerated"
    if placement.linear_share is not None and placement.product_share is not None:
        share += (
            f", {placement.linear_share:.1%} of the multiply-accumulates of weights and "
            f"{placement.product_share:.1%} of all products"
        )
    _row(console, "placement", f"{placement.target}: {share} ({placement.source})")
    for kind in placement.costs[:_MOST]:
        cost = f"; {kind.cost}" if kind.cost else ""
        _row(console, "", f"{kind.count} x {kind.label}{cost}", "yellow")
    for text in placement.violations:
        _row(console, "", f"violation: {text}", "red")
    for text in placement.advice:
        _row(console, "", f"advice: {text}", "dim")
    for method in placement.methods:
        _show_method(console, method)


def _show_method(console: Console, method: Method) -> None:
    from planish.form import size

    memory = method.memory
    parts = {
        "constants as stored": memory.mapped,
        "constants repacked": memory.packed,
        "activations": memory.activations,
        "caches": memory.states,
        "inside delegates": memory.workspace,
        "bookkeeping": memory.bookkeeping + memory.code,
    }
    told = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    _row(
        console,
        "memory",
        f"{method.name}, {method.partitions} delegates: {size(memory.stored)} of constants in the file",
    )
    _row(console, "", f"expected peak beside the process: {size(method.peak)} ({told})")


def _counted(ops: Mapping[str, int]) -> str:
    shown = ", ".join(f"{op} {count}" for op, count in list(ops.items())[:_MOST])
    return shown + (f", and {len(ops) - _MOST} more" if len(ops) > _MOST else "")


def _row(console: Console, label: str, text: str, style: str = "") -> None:
    """A label and its text, wrapped in a column of its own."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=14)
    grid.add_column(overflow="fold")
    grid.add_row(Text(f"  {label}", "dim"), Text(text, style))
    console.print(grid)
