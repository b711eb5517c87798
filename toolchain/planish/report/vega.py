"""The plotting process: a JSON list of Vega specifications on stdin, a JSON list of SVG texts on stdout."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """See the module."""
    import vl_convert

    specs = json.load(sys.stdin)
    # No base URL is allowed: nothing can be fetched.
    json.dump([vl_convert.vega_to_svg(spec, allowed_base_urls=[]) for spec in specs], sys.stdout)


if __name__ == "__main__":
    main()
