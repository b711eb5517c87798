"""A compile that something happens to in a given stage: `python stages.py`, one JSON call per line on stdin.

Everything is imported once; each call is a fork, which ends the way that a `planish` process does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def serve() -> None:
    """Answer {"status": wait status, "told": what it printed} to each call."""
    import torch

    torch.set_num_threads(1)
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import safetensors.torch  # noqa: F401
    import transformers  # noqa: F401

    import planish.build
    import planish.bundle
    import planish.bundle.write
    import planish.failures.recorder
    import planish.report  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        heard, say = os.pipe()  # a file would have the limit of all files
        child = os.fork()
        if child == 0:
            _run(call, say)
        os.close(say)
        with open(heard, errors="replace") as told:
            text = told.read()
        print(json.dumps({"status": os.waitpid(child, 0)[1], "told": text}), flush=True)


def _run(call: dict[str, Any], say: int) -> None:
    os.chdir(call["cwd"])
    os.dup2(say, 1)
    os.dup2(say, 2)
    os.close(say)
    os.close(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(call.get("env", {}))
    _plant(call)
    from planish.cli.app import app

    code = 70
    try:
        app(call["args"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _plant(call: dict[str, Any]) -> None:
    """Let it happen when the line of that stage has been printed."""
    from planish.cli.progress import Lines

    told = Lines.stage
    what, at, delay = call["what"], call["stage"], call.get("delay", 0.0)

    def stage(self: Lines, name: str, detail: str = "") -> None:
        told(self, name, detail)
        if name.split()[0] != at:
            return
        if what == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (call["limit"], resource.RLIM_INFINITY))
        elif what == "memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + call["limit"], resource.RLIM_INFINITY))
            import torch

            torch.ones(call["limit"])  # four times as much
        elif delay:
            threading.Timer(delay, os.kill, (os.getpid(), what)).start()
        else:
            os.kill(os.getpid(), what)

    Lines.stage = stage  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
