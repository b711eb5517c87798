"""Runner of the reference target."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import planish_passes.decoder_ops
import planish_passes.ops  # noqa: F401  (both register operators that the file uses)
from planish_targets.serve import Call, Model, serve


def load(call: Call) -> Model:
    """Open a .pt2 file."""
    torch.set_num_threads(call.threads)
    module = torch.export.load(call.path).module()
    inputs, outputs = call.options["inputs"], call.options["outputs"]
    assert isinstance(inputs, list)
    assert isinstance(outputs, list)

    def model(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return dict(zip(outputs, module(*(feed[name] for name in inputs)), strict=True))

    return model


if __name__ == "__main__":
    serve("torch", ("torch",), load)
