"""llama.cpp in a process of its own, through the wheel xllamacpp: a prompt and some tokens, as often as asked.

    python benchmarks/llama_cpp.py FILE.gguf THREADS PROMPT NEW

Each line on standard input is one round; each line on standard output one answer: seconds of the prompt and of the
tokens behind it, as llama.cpp's own clock has them.
"""

from __future__ import annotations

import json
import os
import random
import sys


def main() -> None:
    """See the module."""
    import xllamacpp

    file, threads, prompt, new = sys.argv[1], *(int(a) for a in sys.argv[2:5])
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints
    given = xllamacpp.CommonParams()
    given.model.path, given.n_ctx, given.n_parallel = file, prompt + new + 16, 1
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(given)
    random.seed(0)
    for _ in sys.stdin:
        tokens = [random.randrange(1000, 30000) for _ in range(prompt)]
        asked = {"prompt": tokens, "n_predict": new, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
        times = server.handle_completions(asked)["timings"]
        told.write(json.dumps({"prompt": times["prompt_ms"] / 1e3, "new": times["predicted_ms"] / 1e3}) + "\n")
        told.flush()


if __name__ == "__main__":
    main()
