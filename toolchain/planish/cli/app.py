"""The commands, and what `planish --help` says."""

from __future__ import annotations

from typing import Annotated

import typer

from planish.cli.commands.bench import bench_command
from planish.cli.commands.build import build_command
from planish.cli.commands.cache import cache_command
from planish.cli.commands.compile import compile_command
from planish.cli.commands.doctor import doctor_command
from planish.cli.commands.eval import eval_command
from planish.cli.commands.evidence import accept_command, attest_command
from planish.cli.commands.explain import explain_command
from planish.cli.commands.inspect import inspect_command
from planish.cli.commands.loaders import loaders_command
from planish.cli.commands.pack import pack_command, unpack_command
from planish.cli.commands.report import report_command
from planish.cli.commands.run import run_command
from planish.cli.commands.sign import sign_command
from planish.cli.commands.targets import targets_command
from planish.cli.commands.verify import verify_command
from planish.cli.guard import Guarded

# \b keeps the lines of a paragraph as they are.
EXIT_CODES = """\b
Exit codes:
  0    everything is fine
  1    it cannot be done: error, where and hint are on stderr
  2    the command line is wrong
  3    a gate failed
  130  interrupted"""

app = typer.Typer(
    name="planish",
    cls=Guarded,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        try:
            typer.echo(f"planish {metadata.version('planish')}")
        except metadata.PackageNotFoundError:
            typer.echo("planish (running from its source tree)")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Quantise once. Lower everywhere. Prove every artifact.

    planish compiles a Hugging Face model for ONNX Runtime, Core ML, ExecuTorch and DirectML, and checks every artifact
    against the original.

    \b
    Start here:
      planish doctor                   what works on this machine
      planish compile MODEL -r int8    MODEL: a folder, hub id or .gguf file
      planish build                    all bundles of planish.toml, only what changed
      planish explain                  why the last compile failed
      planish verify NAME.planish      check a bundle again
      planish report NAME.planish      what it proves, as one page
      planish run NAME.planish         chat with a compiled language model
      planish COMMAND --help           examples for each command
    """


for name, command, short in (
    ("compile", compile_command, "Compile a model, check every artifact, write a bundle."),
    ("build", build_command, "Make all bundles of a file that are not up to date."),
    ("explain", explain_command, "Tell why a compile failed, and make a bug report of it."),
    ("cache", cache_command, "Tell what planish build keeps here, check it, make it smaller."),
    ("verify", verify_command, "Check a bundle again."),
    ("run", run_command, "Chat with a language model of a bundle, or complete a text."),
    ("eval", eval_command, "Measure a language model: perplexity, distance to the original."),
    ("report", report_command, "Write the report of a bundle as one page, or compare several."),
    ("bench", bench_command, "Measure artifacts; take measurements of devices; find what contradicts itself."),
    ("loaders", loaders_command, "Write the source code that apps open a bundle with."),
    ("sign", sign_command, "Sign a bundle."),
    ("attest", attest_command, "Run an artifact here and sign what came out."),
    ("accept", accept_command, "Take the signed result of a device into a bundle."),
    ("pack", pack_command, "Make one file of a bundle."),
    ("unpack", unpack_command, "Make a bundle of that file again."),
    ("inspect", inspect_command, "Describe a model, a bundle or an artifact."),
    ("targets", targets_command, "List targets and recipes."),
    ("doctor", doctor_command, "Tell what works here, and what mends the rest."),
):
    app.command(name, epilog=EXIT_CODES, short_help=short)(command)
