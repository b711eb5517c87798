"""Defects planted in a saved package: each one is found by what reads or runs the package."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import fused, logits, prompt

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.mil import graph, spec
from planish_targets.coreml.run import load
from planish_targets.serve import Call

ct = pytest.importorskip("coremltools")

CONTEXT, CHUNK = 24, 4  # as many tokens as heads: a permutation of the two keeps every shape
CUTS = [5, 4, 4, 1, 1, 1]
EPSILON = 1e-6
FIRST = "model_layers_0_"


@dataclass(frozen=True)
class Package:
    """A package and what it was made from."""

    yardstick: Program
    form: Program
    artifact: Artifact

    def copy(self, into: Path) -> Package:
        shutil.copytree(self.artifact.folder, into)
        return replace(self, artifact=replace(self.artifact, folder=into))

    @property
    def blob(self) -> Path:
        return self.artifact.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"

    def edit(self, change: Callable[[str, Any], None]) -> None:
        """Change the block of each function of the specification: (name, block)."""
        path = self.artifact.path / "Data" / "com.apple.CoreML" / "model.mlmodel"
        model = spec._messages().Model.FromString(path.read_bytes())
        for name, function in model.mlProgram.functions.items():
            change(name, function.block_specializations[function.opset])
        path.write_bytes(model.SerializeToString())


def found(package: Package) -> set[str]:
    """The checks that see a difference to what the package was made from."""
    return {name for name, check in CHECKS.items() if not _holds(check, package)}


def _holds(check: Callable[[Package], bool], package: Package) -> bool:
    try:
        return check(package)
    except PlanishError:
        return False


def _weights(package: Package) -> bool:
    stored, expected = TARGET.read_weights(package.artifact), quantized(package.form)
    return set(stored) == set(expected) and all(
        torch.equal(stored[n].values, w.values)
        and torch.equal(stored[n].scales, w.scales)
        and stored[n].format == w.format
        and w.zero_points is not None
        and torch.equal(stored[n].zero_points, w.zero_points)  # type: ignore[arg-type]
        for n, w in expected.items()
    )


def _outputs(package: Package) -> bool:
    model, tokens, parts, at = load(Call(package.artifact.path, package.artifact.options, 1)), prompt(1, 16), [], 0
    for count in CUTS:
        feed = {"input_ids": tokens[:, at : at + count], "position_ids": torch.arange(at, at + count)[None]}
        parts.append(model(feed)["logits"])
        at += count
    truth = logits(package.yardstick, tokens, CUTS)
    return float((torch.cat(parts, 1) - truth).abs().max() / truth.abs().max()) < 1e-4


def _epsilons(package: Package) -> bool:
    stated = TARGET.read_attributes(package.artifact)
    assert set(stated) == {f"model.mlpackage, function {name}" for name in ("decode", "prefill")}
    return all(len(found) == 5 and all(abs(a.value / EPSILON - 1) < 1e-3 for a in found) for found in stated.values())


CHECKS: dict[str, Callable[[Package], bool]] = {"weights": _weights, "outputs": _outputs, "epsilons": _epsilons}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Package:
    shared = run_passes(fused("llama").program, pipeline.quantise(WeightFormat(4, 16, symmetric=False))).program
    yardstick = run_passes(shared, pipeline.yardstick(torch.float16, "none")).program
    order = (*pipeline.resident(CONTEXT), *pipeline.for_target(TARGET.capabilities.keeps, None))
    form = run_passes(yardstick, order).program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish_targets.coreml.target.CHUNKS", (1, CHUNK))
        artifact = TARGET.lower(form, tmp_path_factory.mktemp("llama"), Recipe("int4", 4))
    return Package(yardstick, form, artifact)


def named(block: Any, part: str, kind: str) -> Any:
    """The first operation of a type in whose output's name a part occurs."""
    return next(o for o in block.operations if o.type == kind and o.outputs and part in o.outputs[0].name)


def weight(block: Any, part: str) -> Any:
    return named(block, part, "constexpr_blockwise_shift_scale")


def bound(operation: Any, key: str) -> Any:
    return operation.inputs[key].arguments[0].value


def flip_a_bit(package: Package) -> None:
    block = mil.load(package.artifact.path).function.block
    operation = next(o for o in block.walk() if o.output.startswith(FIRST + "mlp_up_proj") and "data" in o.inputs)
    stored = operation.inputs["data"][0]
    assert isinstance(stored, graph.Stored)
    start = stored.file.check(stored.offset, stored.type.dtype, stored.shape, stored.name)
    raw = bytearray(package.blob.read_bytes())
    raw[start + 11] ^= 0x40
    package.blob.write_bytes(raw)


def swap(key: str) -> Callable[[Package], None]:
    def change(_: str, block: Any) -> None:
        one, other = (bound(weight(block, f"{FIRST}mlp_{n}_proj"), key).blobFileValue for n in ("up", "gate"))
        assert one.offset != other.offset
        one.offset, other.offset = other.offset, one.offset

    return lambda package: package.edit(change)


def turn_the_scales(package: Package) -> None:
    def change(_: str, block: Any) -> None:
        operation = weight(block, FIRST + "self_attn_o_proj")
        for key in ("scale", "offset"):
            sizes = bound(operation, key).type.tensorType.dimensions
            rows, groups = sizes[0].constant.size, sizes[1].constant.size
            assert rows != groups
            sizes[0].constant.size, sizes[1].constant.size = groups, rows

    package.edit(change)


def leave_axes_in_place(package: Package) -> None:
    def change(name: str, block: Any) -> None:
        if name != "prefill":
            return
        operation = next(o for o in block.operations if o.type == "transpose")
        perm = named(block, operation.inputs["perm"].arguments[0].name, "const")
        values = perm.attributes["val"].immediateValue.tensor.ints.values
        assert list(values) == [0, 2, 1, 3]
        values[:] = [0, 1, 2, 3]

    package.edit(change)


def forget_a_write(function: str) -> Callable[[Package], None]:
    def change(name: str, block: Any) -> None:
        if name == function:
            writes = [i for i, o in enumerate(block.operations) if o.type == "write_state"]
            assert len(writes) == 4
            del block.operations[writes[1]]

    return lambda package: package.edit(change)


def change_an_epsilon(function: str) -> Callable[[Package], None]:
    def change(name: str, block: Any) -> None:
        for operation in block.operations if name == function else ():
            values = (
                operation.attributes["val"].immediateValue.tensor.floats.values if operation.type == "const" else ()
            )
            if len(values) == 1 and np.float32(values[0]) == np.float32(EPSILON):
                values[0] = 1e-5
                return

    return lambda package: package.edit(change)


FAULTS: dict[str, tuple[Callable[[Package], None], set[str]]] = {
    "flipped bit": (flip_a_bit, {"weights", "outputs"}),
    "swapped integers": (swap("data"), {"weights", "outputs"}),
    "swapped zero points": (swap("offset"), {"weights", "outputs"}),
    "scales along the wrong axis": (turn_the_scales, {"weights", "outputs"}),
    "wrong permutation": (leave_axes_in_place, {"outputs"}),
    "state not written by decode": (forget_a_write("decode"), {"outputs"}),
    "state not written by prefill": (forget_a_write("prefill"), {"outputs"}),
    "another epsilon in decode": (change_an_epsilon("decode"), {"epsilons"}),
    "another epsilon in prefill": (change_an_epsilon("prefill"), {"epsilons"}),
}


def test_a_whole_package_passes_every_check(whole: Package) -> None:
    assert found(whole) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault: str, whole: Package, tmp_path: Path) -> None:
    package = whole.copy(tmp_path / "copy")
    plant, expected = FAULTS[fault]
    plant(package)
    assert expected <= found(package)


def swapped_nibbles(raw: bytes) -> bytes:
    return bytes((b >> 4 | b << 4) & 0xFF for b in raw)


def test_the_order_of_table_indices_is_seen(tmp_path: Path) -> None:
    builder, types = ct.converters.mil.Builder, ct.converters.mil.mil.types
    generator = np.random.default_rng(0)
    indices = generator.integers(0, 16, (8, 32)).astype(types.np_uint4_dtype)
    tables = generator.normal(size=(2, 1, 16, 1)).astype(np.float16)

    @builder.program(input_specs=[builder.TensorSpec((1, 32), types.fp16)], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return builder.linear(x=x, weight=builder.constexpr_lut_to_dense(indices=indices, lut=tables, name="w"))

    path = tmp_path / "table.mlpackage"
    ct.convert(
        program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16, skip_model_load=True, package_dir=str(path),
    )  # fmt: skip
    feed = {next(iter(mil.load(path).inputs)).name: torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}
    before, (stored,) = mil.load(path).run(feed), mil.load(path).quantized_weights().values()
    assert torch.equal(stored.data, torch.from_numpy(indices.astype(np.uint8)))
    file = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    raw = file.read_bytes()
    packed = bytes(int(a) | int(b) << 4 for a, b in indices.reshape(-1, 2))
    assert raw.count(packed) == 1
    file.write_bytes(raw.replace(packed, swapped_nibbles(packed)))
    (after,) = mil.load(path).quantized_weights().values()
    assert not torch.equal(after.data, stored.data)
    assert torch.equal(after.data.reshape(-1, 2).flip(1), stored.data.reshape(-1, 2))
    (one,), (other,) = before.values(), mil.load(path).run(feed).values()
    assert not torch.allclose(one, other, atol=1e-2)
