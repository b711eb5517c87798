"""Which backends the runtime of executorch that is installed here has; asked in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

_LIMIT = 60  # seconds


@cache
def backends() -> tuple[str, ...] | None:
    """Names, sorted; None when the runtime could not be asked."""
    command = (sys.executable, "-m", __name__)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return tuple(sorted(done.stdout.split()))


def main() -> None:
    """Print the names."""
    from planish_targets.executorch.run import skip_compiler

    skip_compiler()
    from executorch.extension.pybindings.portable_lib import _get_registered_backend_names

    print(*_get_registered_backend_names())


if __name__ == "__main__":
    main()
