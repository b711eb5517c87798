"""The ExecuTorch target: XNNPACK delegates, portable kernels for the rest."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.expand import Expand
from planish_passes.fold import FoldConstants
from planish_passes.infra import Pass
from planish_passes.numerics import BY_CACHE
from planish_passes.program import Program
from planish_passes.weights import QuantizedTensor
from planish_targets.contract import (
    Artifact,
    Attribute,
    Capabilities,
    Evidence,
    Numerics,
    Placement,
    Recipe,
    Runner,
    Target,
    Unavailable,
)
from planish_targets.executorch.attached import recorded_data
from planish_targets.executorch.attention import ExpandAttention
from planish_targets.executorch.forms import InferredLength, NormByProduct, RotaryByProduct, Share
from planish_targets.executorch.header import is_pte
from planish_targets.executorch.linear import SINGLE, DynamicLinear
from planish_targets.executorch.lower import Written, write
from planish_targets.executorch.pte import INSTALL, open_pte
from planish_targets.executorch.rewrite import AdditiveMask, BatchMatmul, ExpandTanhGelu
from planish_targets.executorch.tables import PlainTables

FILE = "model.pte"
_INSIDE = frozenset(f"planish.{n}" for n in ("linear_q", "embedding_q", "resident_attention", "cache_write"))
_CAPABILITIES = Capabilities(
    keeps=_INSIDE | {"planish.rope", "planish.rms_norm"}, bits=frozenset({4, 8}), caches=True, resident=2048
)


@dataclass(frozen=True)
class ExecutorchTarget:
    """Fixed shapes: a wide range of lengths costs many times the planned memory and half of the delegation."""

    name: str = "executorch"
    summary: str = "ExecuTorch program (.pte) for Android, iOS and embedded Linux, computed by XNNPACK"
    requires: Mapping[str, str] = field(default_factory=lambda: {"executorch": ">=1.5,<1.6", "torch": ">=2.13,<2.14"})
    extra: str = "executorch"
    capabilities: Capabilities = _CAPABILITIES
    split: bool = False

    def with_split_weights(self) -> Target:
        """The same, with weights in a .ptd file of their own."""
        return replace(self, split=True)

    def share_weights(self, artifacts: Sequence[Artifact]) -> tuple[Artifact, ...]:
        """See `planish_targets.executorch.share`."""
        from planish_targets.executorch.share import share

        return share(artifacts)

    @property
    def variants(self) -> Mapping[str, Target]:
        """Other delegates; see `planish_targets.executorch.variant`."""
        from planish_targets.executorch.variant import VARIANTS

        return VARIANTS

    def numerics(self, recipe: Recipe) -> Numerics:
        """float32; inputs of quantised linears are rounded per token to asymmetric int8, as XNNPACK does, in programs
        with caches twice (see `pairs`)."""
        return Numerics(activations=BY_CACHE if recipe.bits else "none", fast=SINGLE)

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Forms that XNNPACK takes."""
        return (
            ExpandAttention(),  # before composites are expanded: it leaves some
            NormByProduct(),
            RotaryByProduct(),
            PlainTables(),
            Expand(_INSIDE),
            Canonicalise(),  # transposes around rotary positions cancel
            FoldConstants(),  # with fixed shapes, rows of their tables
            AdditiveMask(),
            BatchMatmul(),  # after the mask: it looks for the softmax behind a mask, not through reshapes
            ExpandTanhGelu(),
            InferredLength(),  # behind everything that makes reshapes
            Share(),  # before quantised linears, which look at what they share themselves
            DynamicLinear(),  # last: its operators are known to nothing else
        )

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write `model.pte`, and `model.ptd` where weights are split off.

        Raises:
            PlanishError: an operator has no form here (named with its module); executorch is not installed.
        """
        missing = missing_runtime()
        if missing:
            raise PlanishError(f"lowering to executorch is not possible: {missing}", f"target {self.name}", INSTALL)
        from planish_targets.executorch.weights import duplicates, locate

        written = write(program, into / FILE, facts(program), split=self.split)
        file = open_pte(into / FILE)
        options: dict[str, object] = {
            "inputs": [p.name for p in written.inputs],
            "input_dtypes": [str(p.dtype).removeprefix("torch.") for p in written.inputs],
            "input_shapes": [list(p.shape) for p in written.inputs],
            "outputs": [p.name for p in program.outputs if p.name not in {o for o, _ in program.states}],
            **resident(program, written),
            "delegated": written.delegated,
            "portable": written.portable,
            "subgraphs": written.subgraphs,
            "planned_bytes": file.planned_bytes(),
            "kernel_modules": list(written.kernels),
            "delegate_modules": {str(handle): path for handle, path in written.handles.items()},
            "weights": locate(file, program),
            **recorded_data(into / FILE),
        }
        twice = duplicates(options["weights"])  # type: ignore[arg-type]
        return Artifact(self.name, into, FILE, options, _notes(options, twice))

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """ExecuTorch's own runtime for Python, in a process of its own."""
        missing = missing_runtime()
        if missing:
            return Unavailable(missing)
        command = (sys.executable, "-m", "planish_targets.executorch.run")
        return Runner(command, Evidence.EXECUTED, "ExecuTorch runtime (XNNPACK)", several=True)

    def text_runner(self, artifact: Artifact) -> Runner | Unavailable:
        """TextLLMRunner, by its binding for Python."""
        missing = missing_runtime()
        if missing:
            return Unavailable(missing)
        if not any(list(Path(f).glob("extension/llm/runner/_llm_runner.*.*")) for f in _folders()):
            return Unavailable("this executorch is built without its runner for language models")
        command = (sys.executable, "-m", "planish_targets.executorch.text_runner")
        return Runner(command, Evidence.EXECUTED, "ExecuTorch TextLLMRunner")

    def fit_tokenizer(self, folder: Path) -> tuple[str, ...]:
        """See `planish_targets.executorch.text_runner.fit`."""
        from planish_targets.executorch.text_runner import fit

        return fit(folder)

    def placement(self, artifact: Artifact) -> Placement:
        """Per operation, from the file; source modules are known for artifacts that planish lowered."""
        from planish_targets.executorch.placement import placement

        return placement(open_pte(artifact.path), *recorded(artifact))

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """Integers and scales from the bytes of the file."""
        from planish_targets.executorch.weights import read

        places = artifact.options.get("weights")
        if not isinstance(places, dict):
            raise PlanishError(
                "a .pte holds no weight names, and this artifact comes without planish's record of them",
                str(artifact.path),
                "read it through its bundle, or compile the model again",
            )
        return read(open_pte(artifact.path), places)

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]] | Unavailable:
        """Epsilons of the file; source modules are known for artifacts that planish lowered."""
        from planish_targets.executorch.attributes import read

        found = read(open_pte(artifact.path), *recorded(artifact))
        return found if isinstance(found, Unavailable) else {artifact.entry: found}

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """Operators, dtypes, ports and planned memory of a .pte file."""
        if not is_pte(path) and path.suffix != ".pte":
            return None
        from planish_targets.executorch.placement import describe

        return describe(open_pte(path))


def resident(program: Program, written: Written) -> dict[str, object]:
    """What a runner must know of caches inside, and of kernels that come as libraries of their own."""
    options: dict[str, object] = {"kernels": list(written.kernel_libraries)} if written.kernel_libraries else {}
    if not written.caches:
        return options
    logits = next(p for p in program.outputs if p.name == "logits")
    return {
        **options,
        "context": max(int(p.shape[2]) for p in program.inputs if p.name in {i for _, i in program.states}),
        "longest": written.longest,
        "logits": "last" if logits.shape[1] == 1 else "all",
        "state_bytes": sum(c.nbytes for c in written.caches),
    }


def recorded(artifact: Artifact) -> tuple[list[str], dict[str, str]]:
    """Source modules of instructions and of delegated operations, as lowering noted them."""
    kernels, handles = artifact.options.get("kernel_modules", []), artifact.options.get("delegate_modules", {})
    assert isinstance(kernels, list)
    assert isinstance(handles, dict)
    return kernels, handles


def missing_runtime() -> str:
    """Why executorch cannot be used here, or "" when it can."""
    try:
        found = version("executorch")
        runtime = find_spec("executorch.runtime")
    except (PackageNotFoundError, ModuleNotFoundError):
        return f"executorch is not installed; {INSTALL}"
    return "" if runtime else f"executorch {found} has no runtime for Python; {INSTALL}"


def _folders() -> list[str]:
    """Where executorch is installed."""
    package = find_spec("executorch")
    return list(package.submodule_search_locations or ()) if package else []


def facts(program: Program) -> dict[str, object]:
    """Constant methods that executorch's own runners for language models ask for, as far as the program tells."""
    if not program.states:
        return {}
    inner = {i for _, i in program.states}
    context = max(int(p.shape[2]) for p in program.inputs if p.name in inner)
    logits = next(p for p in program.outputs if p.name == "logits")
    return {
        "get_max_seq_len": program.axes["sequence"][1] if "sequence" in program.axes else 1,
        "get_max_context_len": context,
        "get_vocab_size": int(logits.shape[-1]),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": program.count()["planish.resident_attention"] > 0,
        "enable_dynamic_shape": "sequence" in program.axes,
        **{f"get_{name.replace('_token_', '_')}": list(ids) for name, ids in program.facts.items() if "eos" in name},
        **{f"get_{name.replace('_token_', '_')}": ids[0] for name, ids in program.facts.items() if "bos" in name},
    }


def _notes(options: Mapping[str, object], twice: int) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if isinstance(data := options.get("data"), dict):
        notes += (f"weights are in {data['file']}: the runtime is given both files, and crashes without this one",)
    notes += (
        f"planned memory: {options['planned_bytes']:,} bytes, beside the weights and what XNNPACK allocates itself",
        f"{options['delegated']} operations run in {options['subgraphs']} XNNPACK delegates, "
        f"{options['portable']} in portable kernels",
    )
    if "context" in options:
        notes += (f"{options['state_bytes']:,} bytes of planned memory are caches for {options['context']} tokens",)
    if twice:
        notes += (f"{twice:,} bytes of integers are stored twice: a table that is also a linear has two layouts",)
    if "kernels" in options:
        notes += ("the app links executorch's kernels for " + " and ".join(_LINKED[k] for k in options["kernels"]),)  # type: ignore[attr-defined]
    return notes


_LINKED = {
    "extension.llm.custom_ops": "language models (custom_ops)",
    "kernels.quantized": "quantised tables (quantized_kernels)",
}
