"""planish compile"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, err, out, results_only
from planish.cli.guard import GATE, Told, UsageError, tell
from planish.cli.progress import megabytes, peak_memory, progress

if TYPE_CHECKING:
    from planish.compiled import Compiled
    from planish.failures.recorder import Recorder
    from planish.request import Request

_LARGE = 64 * 1024  # bytes; biases and norms, which stay float by design, are smaller


def compile_command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model folder, hub id, or .gguf file.", show_default=False),
    ] = None,
    targets: options.Targets = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="RECIPE",
            help="float, int8, int4, lut4 (palettes), or keep (a GGUF file's own blocks).  [default: float]",
        ),
    ] = None,
    group: Annotated[
        int | None, typer.Option(metavar="16|32|64|128", help="Weights that share a scale.  [default: the recipe's]")
    ] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric/--asymmetric", help="Without or with zero points.")
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(metavar="nearest|search|calibrated", help="How integers are found.  [default: auto, by size]"),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="auto|fast|none",
            help="Rounding of inputs. fast: quickest kernels; none: exact ones, where there are any.  [default: auto]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Bundle to write.  [default: NAME-RECIPE.planish]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Request file; flags win over it.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Task; inferred from the model when left out.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option("--trust-remote-code/--no-trust-remote-code", help="Run code that comes with the model."),
    ] = None,
    sequence_length: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Length, where shapes are fixed; several in one Core ML package."),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(metavar="B", help="Average bits of weights, scales included (int4: 4.5 to 8)."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest size of an artifact (90MB); bits go where they help."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Tokens that a cache inside the artifact holds.")
    ] = None,
    dynamic: Annotated[
        bool | None,
        typer.Option("--dynamic/--fixed", help="Dynamic or fixed shapes, for all targets."),
    ] = None,
    minimum_ios: Annotated[
        int | None, typer.Option(metavar="16|17|18", help="Oldest iOS that a Core ML package opens on.  [default: 18]")
    ] = None,
    ane: Annotated[
        bool | None,
        typer.Option("--ane/--no-ane", help="Core ML: forms that the Neural Engine is said to prefer (unverified)."),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="NAME=LIMIT",
            help="Limit of a gate: cosine, agreement, divergence, capture, lowering, placement, delegated, tokenizer.",
        ),
    ] = None,
    logits: Annotated[
        str | None, typer.Option(metavar="last|all", help="Positions that a language model answers.  [default: last]")
    ] = None,
    split_weights: Annotated[
        bool | None,
        typer.Option("--split-weights/--one-file", help="ExecuTorch: weights in a .ptd file beside the program."),
    ] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Check every artifact.  [default: up to 2e9 weights]")
    ] = None,
    keep_failed: Annotated[
        bool | None,
        typer.Option("--keep-failed/--no-keep-failed", help="Write the bundle also on exit 3."),
    ] = None,
    loaders: Annotated[
        bool | None,
        typer.Option("--loaders/--no-loaders", help="Put source code for apps into the bundle.  [default: yes]"),
    ] = None,
    runner: options.RunnerPairs = None,
    threads: Annotated[int | None, typer.Option(min=1, max=256, metavar="N", help="Threads of the runtimes.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Limit of one run.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compile a model for one or more targets, check every artifact, write one bundle.

    \b
    Examples:
      planish compile ./my-model -r int8
      planish compile BAAI/bge-small-en-v1.5 -t onnxruntime,coreml -o out.planish
      planish compile ./my-model --sequence-length 256 --gate cosine=0.999
      planish compile ./my-model --runner directml="ssh winbox planish-run"
      planish compile ./my-model -t executorch,executorch:vulkan
      planish compile -c planish.toml --threads 2

    Without -t it compiles for every target that `planish targets` lists, but those that are marked "on request"
    (reference, coreai) and variants (TARGET:NAME). Every flag is also a key of the request file:

    \b
      model = "./my-model"        # relative to the file
      targets = ["onnxruntime", "coreml"]
      recipe = "int8"
      sequence_length = 256
      [gates]
      cosine = 0.999
      [runner]
      directml = "ssh winbox planish-run"
    """
    flags = {
        "model": model,
        "targets": options.names(targets) or None,
        "recipe": recipe,
        "group": group,
        "symmetric": symmetric,
        "rounding": rounding,
        "activations": activations,
        "output": output,
        "task": task,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "sequence_length": options.whole(sequence_length, "--sequence-length"),
        "bits": bits,
        "max_size": max_size,
        "context": context,
        "dynamic": dynamic,
        "minimum_ios": minimum_ios,
        "ane": ane,
        "gates": options.numbers(gate, "--gate") or None,
        "logits": logits,
        "split_weights": split_weights,
        "verify": verify,
        "keep_failed": keep_failed,
        "loaders": loaders,
        "runner": options.pairs(runner, "--runner") or None,
        "threads": threads,
        "timeout": timeout,
    }
    if model is None and config is None:
        here = Path("planish.toml").is_file()
        hint = (
            "planish compile -c planish.toml" if here else "planish compile MODEL, or planish compile -c planish.toml"
        )
        raise UsageError("No model is given.", "MODEL", hint)
    from planish.request_file import load_request

    request = load_request(config, {key: value for key, value in flags.items() if value is not None})
    done = run(request, quiet, verbose)
    if as_json:
        emit_json({**summary(done), **({"explain": done.explain} if done.explain else {})})
    else:
        show(done)
    if done.compiled.failed:
        _tell_failed(done)
        raise typer.Exit(GATE)


@dataclass(frozen=True)
class Done:
    """A finished compile.

    Args:
        bundle: None when a gate failed and --keep-failed was not given.
        sizes: target -> bytes of its artifact.
        seconds: wall time.
        explain: the command that tells more of a failed gate.
    """

    compiled: Compiled
    bundle: Path | None
    sizes: Mapping[str, int]
    seconds: float
    explain: str | None = None


def run(request: Request, quiet: bool, verbose: bool) -> Done:
    """Compile and write.

    Raises:
        PlanishError: see compile_model and write_bundle; or the output is in the way.
    """
    from planish.cli.output import workspace
    from planish.naming import bundle_name

    began = time.monotonic()
    with progress(quiet) as shown, results_only(verbose):
        shown.stage("start", "torch, transformers")
        from planish.build import compile_model
        from planish.bundle import write_bundle
        from planish.bundle.swap import check_replaceable
        from planish.cli.results import artifact_sizes
        from planish.failures.recorder import recorded
        from planish.wishes import friendly

        request = friendly(request)
        at = request.output or Path(bundle_name(request.model, request.recipe))
        if os.path.lexists(at):
            check_replaceable(at)
        with recorded(shown, request, at) as recorder, _interruptible(recorder, at), workspace(at) as folder:
            compiled = compile_model(request, recorder, folder)
            sizes = artifact_sizes(compiled.targets)
            bundle = None
            if not compiled.failed or request.keep_failed:
                recorder.stage("bundle", str(at))
                bundle = write_bundle(compiled, at)
            explain = recorder.ended(compiled)
    return Done(compiled, bundle, sizes, time.monotonic() - began, explain)


@contextlib.contextmanager
def _interruptible(recorder: Recorder, at: Path) -> Iterator[None]:
    """Ctrl-C is told with the stage, and what it means for the bundle."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "holds the old bundle or the whole new one" if recorder.reached == "bundle" else "is as it was"
        err().print(f"interrupted in stage {recorder.reached}: {at} {kept}", soft_wrap=True)
        raise


def summary(done: Done) -> Mapping[str, Any]:
    """The result as JSON values."""
    from planish.cli.results import results_to_json

    compiled = done.compiled
    return {
        "ok": not compiled.failed,
        "bundle": done.bundle,
        "model": compiled.request.model,
        "task": compiled.source.task,
        "architecture": compiled.source.architecture,
        "recipe": compiled.request.recipe,
        "seconds": round(done.seconds, 3),
        "peak_memory_bytes": peak_memory(),
        **results_to_json(compiled, done.sizes),
        "refused": compiled.refused,
        "notes": compiled.notes,
    }


def show(done: Done) -> None:
    """The verdict table, what to know, and where the bundle is."""
    from planish.cli.results import show_results
    from planish.form import size
    from planish.naming import model_name

    compiled, console = done.compiled, out()
    request, source = compiled.request, compiled.source
    title = f"{model_name(request.model)}: {source.architecture}, {source.task}, recipe {request.recipe}"
    show_results(compiled, done.sizes, title)
    console.print()
    told = [n for t in compiled.targets if t.artifact is not None for n in t.artifact.notes]
    for note in dict.fromkeys([*compiled.notes, *told]):
        console.print(f"note: {note}", style="dim", soft_wrap=True)
    kept = [w for w in compiled.weights if w.before == w.after and w.before >= _LARGE]
    if kept and compiled.request.recipe != "float":
        total = size(sum(w.after for w in kept))
        console.print(f"note: {len(kept)} weights stay float ({total}); report.json has the reasons", style="dim")
    console.print(f"{done.seconds:.1f} s, peak memory {megabytes(peak_memory())}", style="dim")
    if done.bundle is not None:
        console.print("bundle", style="bold", end="  ")
        console.print(str(done.bundle), soft_wrap=True)


def _tell_failed(done: Done) -> None:
    failed = done.compiled.failed
    what = f"{len(failed)} gates failed" if len(failed) > 1 else "A gate failed"
    where = ", ".join(f"{name} {verdict.check}" for name, verdict in failed)
    if done.bundle is None:
        hint = "no bundle was written; --keep-failed writes it, --gate NAME=LIMIT changes a limit"
    else:
        hint = "the bundle was written all the same, as --keep-failed asks; its manifest says that it failed"
    tell(Told(f"{what}.", where, hint), notes=[done.explain] if done.explain else ())
