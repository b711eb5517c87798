"""planish run"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, err, results_only
from planish.cli.progress import megabytes, progress

if TYPE_CHECKING:
    from planish.chat import Answer, Chat

EXIT = "/exit"


def run_command(
    bundle: options.Bundle,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to say; read from stdin when left out.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="TARGET", help="Target.  [default: the first that runs here]"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the text as it is, without the chat template.")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message of the chat.")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Most tokens of an answer.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, metavar="T", help="0: always the most probable token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=1e-6, max=1.0, metavar="P", help="Draw from the likeliest tokens, P in all.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the draw; equal seeds, equal answers.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Threads of the runtime.")] = 1,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=1e6, metavar="SECONDS", help="Limit of loading, and of one answer.")
    ] = 600.0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Chat with a compiled language model, or complete a text; tells tokens per second and peak memory.

    With a PROMPT it answers once. Without, every line of stdin is a turn of one conversation, until its end or /exit;
    with --raw or --json all of stdin is one prompt. The answer goes to stdout, speed and memory to stderr. The artifact
    runs in a process of its own, whose peak includes Python and the runtime.

    \b
    Examples:
      planish run my-llm-int4.planish "Why is the sky blue?"
      planish run my-llm-int4.planish                         chat on the terminal
      planish run my-llm-int4.planish --raw "Once upon a time" -n 64
      planish run my-llm-int4.planish "A poem" --temperature 0.8 --top-p 0.95 --seed 1
      planish run my-llm-int4.planish "Hello" -t onnxruntime --threads 4 --json | jq .tokens_per_second
    """
    with ExitStack() as stack:
        with progress(quiet) as shown, results_only(verbose):
            shown.stage("start", "transformers")
            from planish.chat import Chat
            from planish.language import choose, open_language, stop_tokens
            from planish_targets.stream import Decoding, Sampling

            name = options.known_targets([target])[0] if target is not None else None
            language = open_language(bundle)
            found = choose(language.bundle, name)
            if language.bundle.manifest.targets[found.artifact.target].result == "failed":
                shown.note(f"{found.artifact.target} failed a check: see `planish inspect {bundle}` and report.json")
            if not (raw or language.chats):
                shown.note("the tokenizer has no chat template: the text is completed as with --raw")
            shown.stage("load", f"{found.artifact.target}, {found.artifact.entry}")
            stop = stop_tokens(language, found.artifact)
            decoding = stack.enter_context(
                Decoding(found.runner, found.artifact, found.states, found.longest, threads=threads, timeout=timeout)
            )
            sampling = Sampling(max_tokens, stop, temperature, top_p, seed)
            messages = [{"role": "system", "content": system}] if system is not None else []
            chat = Chat(language, decoding, sampling, raw or not language.chats, messages)
        for text in _prompts(prompt, whole=as_json or chat.raw):
            answer = _answer(chat, text, silent=as_json)
            if as_json:
                emit_json(_json(answer, chat, str(bundle), found.artifact.target))
            elif not quiet:
                err().print(_speed(answer), style="dim", soft_wrap=True)


def _prompts(given: str | None, whole: bool) -> Iterator[str]:
    """The argument; else stdin, as one text or line by line."""
    terminal = sys.stdin.isatty()
    if given is not None:
        yield given
        return
    if whole and not terminal:
        yield sys.stdin.read().removesuffix("\n")
        return
    while True:
        if terminal:
            err().print("> ", style="bold cyan", end="")
        line = sys.stdin.readline()
        if not line or line.strip() == EXIT:
            return
        if line.strip():
            yield line.strip()


def _answer(chat: Chat, prompt: str, silent: bool) -> Answer:
    """Write the pieces to stdout as they come."""
    pieces = chat.ask(prompt)
    while isinstance(piece := next(pieces), str):
        if piece and not silent:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not silent:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return piece


def _speed(answer: Answer) -> str:
    end = answer.finished
    parts = [
        f"prompt {end.prompt_tokens} tokens{_per_second(answer.prompt_rate)}",
        f"answer {len(answer.tokens)} tokens{_per_second(answer.decode_rate)}",
        f"peak memory {megabytes(end.peak_bytes)}",
    ]
    reasons = {"length": "stopped by --max-tokens", "context": "the model's context is full"}
    return "; ".join([*parts, *([reasons[end.reason]] if end.reason in reasons else [])])


def _per_second(rate: float | None) -> str:
    return "" if rate is None else f", {rate:.1f} tokens/s"


def _json(answer: Answer, chat: Chat, bundle: str, target: str) -> dict[str, Any]:
    end = answer.finished
    return {
        "bundle": bundle,
        "target": target,
        "device": chat.decoding.device,
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": end.reason,
        "counts": {"prompt": answer.prompt_tokens, "computed": end.prompt_tokens, "answer": len(answer.tokens)},
        "seconds": {
            "load": chat.decoding.load_seconds,
            "prompt": end.prompt_seconds,
            "decode": end.decode_seconds,
        },
        "tokens_per_second": {"prompt": answer.prompt_rate, "decode": answer.decode_rate},
        "peak_memory_bytes": end.peak_bytes,
    }
