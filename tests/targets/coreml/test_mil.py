"""The MIL interpreter against torch, operation by operation, and against damaged packages.

Packages are made by coremltools' own builder. All cases of a table share one package: one conversion.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from planish_passes.errors import PlanishError
from planish_targets.coreml import mil
from planish_targets.coreml.mil import blob, graph, spec
from planish_targets.coreml.mil.ops import OPS
from planish_targets.coreml.mil.types import BY_NAME, unpack

warnings.filterwarnings("ignore")
ct = pytest.importorskip("coremltools")

import coremltools.optimize.coreml as cto  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Program, types  # noqa: E402

TYPES = {torch.float32: types.fp32, torch.int32: types.int32, torch.bool: types.bool}


@dataclass(frozen=True)
class Case:
    """One operation: how to build it from builder variables, and the torch expression it must equal."""

    label: str
    inputs: tuple[Tensor, ...]
    build: Callable[..., Any]
    expect: Callable[..., Any]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def i32(*values: Any) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.int32)


def save(
    path: Path, inputs: dict[str, Any], build: Callable[..., Any], target: Any = None, precision: Any = None
) -> Path:
    """Build a program from input TensorSpecs, convert without optimisation and save it."""
    target = target or ct.target.iOS18
    program = mb.program(input_specs=list(inputs.values()), opset_version=target)(build)
    model = ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=precision or ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def save_table(cases: list[Case], path: Path, target: Any = None) -> Path:
    """All cases of a table in one package: inputs c<case>_i<input>, outputs c<case>_o<output>."""
    names, specs = [], {}
    for c, case in enumerate(cases):
        for i, value in enumerate(case.inputs):
            names.append(f"c{c}_i{i}")
            kind = types.int32 if value.dtype == torch.bool else TYPES[value.dtype]
            specs[names[-1]] = mb.TensorSpec(shape=tuple(value.shape), dtype=kind)

    def body(**given: Any) -> Any:
        outputs = []
        for c, case in enumerate(cases):
            operands = []
            for i, value in enumerate(case.inputs):
                operand = given[f"c{c}_i{i}"]
                operands.append(mb.cast(x=operand, dtype="bool") if value.dtype == torch.bool else operand)
            results = case.build(*operands)
            results = results if isinstance(results, (tuple, list)) else (results,)
            for o, result in enumerate(results):
                if types.is_bool(result.dtype) or result.dtype in (types.int8, types.uint8, types.int16, types.uint16):
                    result = mb.cast(x=result, dtype="int32")
                outputs.append(mb.identity(x=result, name=f"c{c}_o{o}"))
        return tuple(outputs)

    return save(path, specs, with_names(body, names), target)


def with_names(body: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """A function with exactly these parameters: the builder names inputs after them."""
    namespace: dict[str, Any] = {"body": body}
    exec(f"def built({', '.join(names)}):\n    return body({', '.join(f'{n}={n}' for n in names)})", namespace)
    built: Callable[..., Any] = namespace["built"]
    return built


def run_table(cases: list[Case], package: Path) -> list[list[Tensor]]:
    inputs = {
        f"c{c}_i{i}": value.to(torch.int32) if value.dtype == torch.bool else value
        for c, case in enumerate(cases)
        for i, value in enumerate(case.inputs)
    }
    outputs = mil.load(package).run(inputs)
    return [[outputs[f"c{c}_o{o}"] for o in range(4) if f"c{c}_o{o}" in outputs] for c in range(len(cases))]


X = randn(2, 3, 4)
POSITIVE = X.abs() + 0.5
UNIT = torch.tanh(X)
Y = randn(2, 3, 4, seed=1)
IX, IY = i32([[5, -7, 3], [0, 9, -2]]), i32([[2, 3, -4], [7, -5, 3]])
BX, BY = X[0] > 0, Y[0] > 0
IMAGE = randn(1, 4, 7, 6)
SIGNAL = randn(1, 4, 9)


def unary(name: str, expect: Callable[[Tensor], Tensor], x: Tensor = X, **parameters: Any) -> Case:
    return Case(
        name + "".join(f" {v}" for v in parameters.values()),
        (x,),
        lambda v: getattr(mb, name)(x=v, **parameters),
        expect,
    )


def binary(name: str, expect: Callable[[Tensor, Tensor], Tensor], x: Tensor = X, y: Tensor = Y) -> Case:
    return Case(f"{name} {x.dtype}", (x, y), lambda a, b: getattr(mb, name)(x=a, y=b), expect)


f32 = np.float32
ELEMENTWISE = [
    unary("abs", torch.abs),
    unary("acos", torch.acos, UNIT),
    unary("asin", torch.asin, UNIT),
    unary("atan", torch.atan),
    unary("atanh", torch.atanh, UNIT),
    unary("ceil", torch.ceil),
    unary("clip", lambda x: x.clamp(-0.5, 0.7), alpha=f32(-0.5), beta=f32(0.7)),
    unary("cos", torch.cos),
    unary("cosh", torch.cosh),
    unary("erf", torch.erf),
    unary("exp", torch.exp),
    unary("exp2", torch.exp2),
    unary("floor", torch.floor),
    unary("inverse", lambda x: 1 / (x + 0.25), POSITIVE, epsilon=f32(0.25)),
    unary("log", lambda x: (x + 0.25).log(), POSITIVE, epsilon=f32(0.25)),
    unary("logical_not", torch.logical_not, BX),
    unary("round", torch.round, torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5, 0.4])),
    unary("rsqrt", lambda x: (x + 0.25).rsqrt(), POSITIVE, epsilon=f32(0.25)),
    unary("sign", torch.sign),
    unary("sin", torch.sin),
    unary("sinh", torch.sinh),
    unary("sqrt", torch.sqrt, POSITIVE),
    unary("square", torch.square),
    unary("tan", torch.tan),
    unary("tanh", torch.tanh),
    unary("threshold", lambda x: x.clamp(min=0.1), alpha=f32(0.1)),
    unary("cast", lambda x: x.trunc().to(torch.int32), X * 3, dtype="int32"),
    unary("cast", lambda x: (x != 0).to(torch.int32), IX, dtype="bool"),
    unary("cast", lambda x: x & 0xFFFF, IX, dtype="uint16"),
    binary("add", torch.add),
    binary("add", torch.add, X, randn(3, 1)),
    binary("sub", torch.sub, IX, IY),
    binary("mul", torch.mul),
    binary("real_div", torch.div, X, POSITIVE),
    binary("floor_div", lambda x, y: torch.div(x, y, rounding_mode="floor"), IX, IY),
    binary("floor_div", lambda x, y: torch.floor(x / y), X, POSITIVE),
    binary("mod", lambda x, y: x - y * torch.div(x, y, rounding_mode="floor"), IX, IY),
    binary("mod", torch.remainder, X, POSITIVE),
    binary("pow", torch.pow, POSITIVE, Y),
    binary("maximum", torch.maximum),
    binary("minimum", torch.minimum, IX, IY),
    binary("equal", torch.eq, IX, i32([[5, 0, 3], [1, 9, 2]])),
    binary("not_equal", torch.ne, IX, i32([[5, 0, 3], [1, 9, 2]])),
    binary("greater", torch.gt),
    binary("greater_equal", torch.ge, IX, IX),
    binary("less", torch.lt),
    binary("less_equal", torch.le, IX, IX),
    binary("logical_and", torch.logical_and, BX, BY),
    binary("logical_or", torch.logical_or, BX, BY),
    binary("logical_xor", torch.logical_xor, BX, BY),
    Case("select", (BX, X, Y), lambda c, a, b: mb.select(cond=c, a=a, b=b), torch.where),
    Case(
        "quantize",
        (X,),
        lambda v: mb.quantize(input=v, scale=f32(0.02), zero_point=np.uint8(120), output_dtype="uint8"),
        lambda x: (torch.round(x / f32(0.02)) + 120).clamp(0, 255).to(torch.int32),
    ),
    Case(
        "dequantize",
        (X,),
        lambda v: mb.dequantize(
            input=mb.quantize(input=v, scale=np.array([0.02, 0.03, 0.04], f32), output_dtype="int8", axis=1),
            scale=np.array([0.02, 0.03, 0.04], f32),
            axis=1,
        ),
        lambda x: (x / (s := torch.tensor([[0.02], [0.03], [0.04]]))).round().clamp(-128, 127) * s,
    ),
]
ACTIVATIONS = [
    unary("relu", torch.relu),
    unary("relu6", F.relu6, X * 6),
    unary("leaky_relu", lambda x: F.leaky_relu(x, 0.1), alpha=f32(0.1)),
    unary("clamped_relu", lambda x: F.leaky_relu(x, 0.1).clamp(max=0.6), alpha=f32(0.1), beta=f32(0.6)),
    unary("thresholded_relu", lambda x: F.threshold(x, 0.4, 0.0), alpha=f32(0.4)),
    unary("prelu", lambda x: F.prelu(x, torch.arange(4.0)), IMAGE, alpha=np.arange(4, dtype=f32)),
    unary("elu", lambda x: F.elu(x, 0.7), alpha=f32(0.7)),
    unary("gelu", F.gelu, mode="EXACT"),
    unary("gelu", lambda x: F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION"),
    unary("gelu", lambda x: x * torch.sigmoid(1.702 * x), mode="SIGMOID_APPROXIMATION"),
    unary("sigmoid", torch.sigmoid),
    unary("sigmoid_hard", F.hardsigmoid, X * 3, alpha=f32(1 / 6), beta=f32(0.5)),
    unary("silu", F.silu),
    unary("linear_activation", lambda x: 2 * x + 3, alpha=f32(2), beta=f32(3)),
    unary("scaled_tanh", lambda x: 2 * torch.tanh(3 * x), alpha=f32(2), beta=f32(3)),
    unary("softplus", F.softplus),
    unary(
        "softplus_parametric",
        lambda x: 2 * torch.log(1 + torch.exp(0.5 * x)),
        IMAGE,
        alpha=np.full(4, 2, f32),
        beta=np.full(4, 0.5, f32),
    ),
    unary("softsign", F.softsign),
    unary("softmax", lambda x: torch.softmax(x, 1), axis=1),
]
REDUCTIONS = [
    *(
        unary(f"reduce_{name}", expect, POSITIVE, axes=[0, 2], keep_dims=keep)
        for keep in (False, True)
        for name, expect in {
            "sum": lambda x, keep=keep: x.sum((0, 2), keep),
            "mean": lambda x, keep=keep: x.mean((0, 2), keep),
            "max": lambda x, keep=keep: x.amax((0, 2), keep),
            "min": lambda x, keep=keep: x.amin((0, 2), keep),
            "prod": lambda x, keep=keep: x.prod(2, keepdim=keep).prod(0, keepdim=keep),
            "l1_norm": lambda x, keep=keep: x.abs().sum((0, 2), keep),
            "l2_norm": lambda x, keep=keep: torch.linalg.vector_norm(x, 2, (0, 2), keep),
            "log_sum": lambda x, keep=keep: x.sum((0, 2), keep).log(),
            "log_sum_exp": lambda x, keep=keep: torch.logsumexp(x, (0, 2), keep),
            "sum_square": lambda x, keep=keep: x.square().sum((0, 2), keep),
        }.items()
    ),
    unary("reduce_sum", lambda x: x.sum()),
    unary("reduce_sum", lambda x: x.sum(1).to(torch.int32), IX, axes=[1]),
    unary("reduce_argmax", lambda x: x.argmax(1).to(torch.int32), axis=1, keep_dims=False),
    unary("reduce_argmin", lambda x: x.argmin(-1, keepdim=True).to(torch.int32), axis=-1, keep_dims=True),
]
ARRANGE = [
    unary("identity", lambda x: x),
    unary("expand_dims", lambda x: x[None, :, :, None], X[0], axes=[0, -1]),
    unary("squeeze", lambda x: x.squeeze(), X[:1, :, :1]),
    unary("squeeze", lambda x: x.squeeze(0), X[:1, :, :1], axes=[0]),
    unary("reshape", lambda x: x.reshape(2, 12), shape=[2, -1]),
    unary("reshape", lambda x: x.reshape(2, 1, 12), shape=[0, 1, -1]),
    Case(
        "reshape_like",
        (X, randn(2, 3), randn(9, 4)),
        lambda x, a, b: mb.reshape_like(x=x, ref_tensors=(a, b), begins=(0, 1), ends=(2, 0), end_masks=(False, True)),
        lambda x, a, b: x.reshape(2, 3, 4),
    ),
    unary("flatten2d", lambda x: x.reshape(2, 12), axis=1),
    unary("flatten2d", lambda x: x.reshape(6, 4), axis=-1),
    unary("transpose", lambda x: x.permute(2, 0, 1), perm=[2, 0, 1]),
    unary("tile", lambda x: x.repeat(1, 2, 3), reps=[1, 2, 3]),
    Case("concat", (X, Y), lambda a, b: mb.concat(values=(a, b), axis=-2), lambda a, b: torch.cat((a, b), 1)),
    Case(
        "concat scalars",
        (i32([4]), i32([5])),
        lambda a, b: mb.concat(values=(mb.squeeze(x=a), mb.squeeze(x=b), np.int32(-1)), axis=0),
        lambda a, b: i32([4, 5, -1]),
    ),
    Case("concat one", (X,), lambda a: mb.concat(values=(a,), axis=0), lambda a: a),
    Case(
        "concat interleave",
        (X[0], Y[0]),
        lambda a, b: mb.concat(values=(a, b), axis=0, interleave=True),
        lambda a, b: torch.stack([a[0], b[0], a[1], b[1], a[2], b[2]]),
    ),
    Case("stack", (X, Y), lambda a, b: mb.stack(values=(a, b), axis=2), lambda a, b: torch.stack((a, b), 2)),
    unary("split", lambda x: x.split([1, 3], 2), axis=2, split_sizes=[1, 3]),
    unary("split", lambda x: x.chunk(2, 2), axis=-1, num_splits=2),
    unary("pad", lambda x: F.pad(x, (3, 4, 1, 2), value=0.5), pad=[1, 2, 3, 4], mode="constant", constant_val=f32(0.5)),
    unary("pad", lambda x: F.pad(x, (2, 3, 1, 2), mode="reflect"), IMAGE, pad=[1, 2, 2, 3], mode="reflect"),
    unary("pad", lambda x: F.pad(x, (2, 3, 1, 2), mode="replicate"), IMAGE, pad=[1, 2, 2, 3], mode="replicate"),
    unary("reverse", lambda x: x.flip(0, 2), axes=[0, -1]),
    unary("reverse", lambda x: x.flip(0, 1, 2)),
    unary(
        "reverse_sequence",
        lambda x: torch.stack([x[0, [2, 1, 0]], x[1, [1, 0, 2]]]),
        lengths=[3, 2],
        seq_axis=1,
        batch_axis=0,
    ),
    unary("sliding_windows", lambda x: x.unfold(1, 2, 1).movedim(-1, 2), axis=1, size=2, stride=1),
    unary("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), IMAGE, upscale_factor=2),
    unary("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), IMAGE[:, :, :6], downscale_factor=np.uint32(2)),
    # block offsets are the slow part of the channel: out[0, 0, y, x] = in[0, 2 * (y % 2) + x % 2, y // 2, x // 2]
    unary(
        "depth_to_space",
        lambda x: torch.stack(
            [torch.stack([x[0, 2 * (r % 2) + c % 2, r // 2, c // 2] for c in range(12)]) for r in range(14)]
        )[None, None],
        IMAGE,
        block_size=2,
    ),
    Case(
        "space_to_depth undoes depth_to_space",
        (IMAGE,),
        lambda x: mb.space_to_depth(x=mb.depth_to_space(x=x, block_size=2), block_size=2),
        lambda x: x,
    ),
    unary(
        "space_to_batch",
        lambda x: torch.cat([F.pad(x, (0, 0, 0, 1))[:, :, r::2, c::3] for r in range(2) for c in range(3)]),
        IMAGE,
        block_shape=[2, 3],
        paddings=[[0, 1], [0, 0]],
    ),
    Case(
        "batch_to_space undoes space_to_batch",
        (IMAGE,),
        lambda x: mb.batch_to_space(
            x=mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[0, 1], [0, 0]]),
            block_shape=[2, 3],
            crops=[[0, 1], [0, 0]],
        ),
        lambda x: x,
    ),
    unary("shape", lambda x: i32([2, 3, 4])),
    Case("fill", (X,), lambda x: mb.fill(shape=mb.shape(x=x), value=f32(1.5)), lambda x: torch.full((2, 3, 4), 1.5)),
    Case("fill_like", (X,), lambda x: mb.fill_like(ref_tensor=x, value=np.int32(7)), lambda x: i32(7).expand(2, 3, 4)),
    Case(
        "range_1d",
        (i32([9]),),
        lambda e: mb.range_1d(start=np.int32(1), end=mb.squeeze(x=e), step=np.int32(3)),
        lambda e: i32([1, 4, 7]),
    ),
    Case(
        "one_hot",
        (i32([2, 0, 5]),),
        lambda i: mb.one_hot(indices=i, one_hot_vector_size=4, axis=0, on_value=f32(2), off_value=f32(-1)),
        lambda i: torch.where(torch.arange(4)[:, None] == i, 2.0, -1.0),
    ),
    unary("band_part", lambda x: x.tril(), lower=-1, upper=0),
    unary("band_part", lambda x: x.triu(-1).tril(1), lower=1, upper=1),
    unary("non_zero", lambda x: (x > 0).nonzero().to(torch.int32), torch.relu(X)),
    unary("cumsum", lambda x: x.cumsum(1), axis=1),
    unary("cumsum", lambda x: x.flip(1).cumsum(1).flip(1) - x, axis=1, exclusive=True, reverse=True),
    unary("argsort", lambda x: x.argsort(-1, descending=True).to(torch.int32), axis=-1, ascending=False),
    unary("topk", lambda x: (x.topk(2, 1)[0], x.topk(2, 1)[1].to(torch.int32)), k=2, axis=1),
    unary("topk", lambda x: x.topk(3, 2, largest=False)[0], k=3, axis=2, ascending=True, return_indices=False),
]
INDEXING = [
    Case(
        "gather",
        (X, i32([[2, 0], [1, 1]])),
        lambda x, i: mb.gather(x=x, indices=i, axis=1),
        lambda x, i: x[:, i.long()],
    ),
    Case("gather scalar", (X,), lambda x: mb.gather(x=x, indices=np.int32(2), axis=-1), lambda x: x[..., 2]),
    Case(
        "gather batch_dims",
        (X, i32([[3, 0], [1, 1]])),
        lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1),
        lambda x, i: torch.stack([x[b][:, i[b].long()] for b in range(2)]),
    ),
    Case(
        "gather_along_axis",
        (X, i32([[[2, 0, 1, 1]], [[0, 0, 2, 1]]])),
        lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: x.gather(1, i.long()),
    ),
    Case(
        "gather_nd",
        (X, i32([[1, 2], [0, 1], [1, 0]])),
        lambda x, i: mb.gather_nd(x=x, indices=i),
        lambda x, i: x[[1, 0, 1], [2, 1, 0]],
    ),
    Case(
        "gather_nd batch_dims",
        (X, i32([[[2, 3]], [[0, 1]]])),
        lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        lambda x, i: torch.stack([x[0, 2, 3], x[1, 0, 1]])[:, None],
    ),
    *(
        Case(
            f"scatter {mode}",
            (POSITIVE, i32([2, 0]), Y[:, :2].abs() + 1),
            lambda d, i, u, mode=mode: mb.scatter(data=d, indices=i, updates=u, axis=1, mode=mode),
            lambda d, i, u, f=f: torch.stack([f(d[:, 0], u[:, 1]), d[:, 1], f(d[:, 2], u[:, 0])], 1),
        )
        for mode, f in {
            "update": lambda d, u: u,
            "add": torch.add,
            "sub": torch.sub,
            "mul": torch.mul,
            "div": torch.div,
            "max": torch.maximum,
            "min": torch.minimum,
        }.items()
    ),
    Case(
        "scatter_along_axis",
        (X, i32([[[2, 0, 1, 1]], [[0, 0, 2, 1]]]), Y[:, :1]),
        lambda d, i, u: mb.scatter_along_axis(data=d, indices=i, updates=u, axis=1, mode="add"),
        lambda d, i, u: d.scatter_add(1, i.long(), u),
    ),
    Case(
        "scatter_nd",
        (X, i32([[1, 2], [0, 1]]), Y[0, :2]),
        lambda d, i, u: mb.scatter_nd(data=d, indices=i, updates=u, mode="update"),
        lambda d, i, u: d.index_put((torch.tensor([1, 0]), torch.tensor([2, 1])), u),
    ),
    unary("slice_by_index", lambda x: x[0:2, 1:3, 1:4:2], begin=[0, 1, 1], end=[2, 3, 4], stride=[1, 1, 2]),
    unary(
        "slice_by_index",
        lambda x: x[:, -1, 1:],
        begin=[1, -1, 1],
        end=[1, 0, 0],
        begin_mask=[True, False, False],
        end_mask=[True, False, True],
        squeeze_mask=[False, True, False],
    ),
    unary(
        "slice_by_index",
        lambda x: x.flip(2)[..., :2],
        begin=[0, 0, -1],
        end=[2, 3, -3],
        stride=[1, 1, -1],
    ),
    unary("slice_by_size", lambda x: x[1:, 1:3, 2:], begin=[1, 1, 2], size=[1, 2, -1]),
    Case(
        "slice_update",
        (X, Y[:, :2, :1]),
        lambda x, u: mb.slice_update(x=x, update=u, begin=[0, 0, 2], end=[2, 3, 3], stride=[1, 2, 1]),
        lambda x, u: x.index_put((torch.arange(2)[:, None], torch.tensor([[0, 2]]), torch.tensor(2)), u[..., 0]),
    ),
    Case(
        "slice_update squeeze",
        (X, Y[0]),
        lambda x, u: mb.slice_update(x=x, update=u, begin=[1, 0, 0], end=[0, 3, 4], squeeze_mask=[True, False, False]),
        lambda x, u: torch.stack([x[0], u]),
    ),
]
W2, W1 = randn(6, 4, 3, 2), randn(6, 2, 3)
WT = randn(4, 3, 3, 2)


def conv2d(pads: tuple[int, ...], **more: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.conv2d(F.pad(x, pads), W2, **more)


NN = [
    unary(
        "linear",
        lambda x: F.linear(x, W1[:, 0, :].repeat(1, 2)[:, :4], W1[:, 0, 0]),
        weight=W1[:, 0, :].repeat(1, 2)[:, :4].numpy(),
        bias=W1[:, 0, 0].numpy(),
    ),
    *(
        Case(
            f"matmul {tx} {ty}",
            (X.mT.contiguous() if tx else X, Y if ty else Y.mT.contiguous()),
            lambda a, b, tx=tx, ty=ty: mb.matmul(x=a, y=b, transpose_x=tx, transpose_y=ty),
            lambda a, b: X @ Y.mT,
        )
        for tx in (False, True)
        for ty in (False, True)
    ),
    Case("matmul broadcast", (randn(1, 3, 4), randn(5, 4, 2)), lambda a, b: mb.matmul(x=a, y=b), torch.matmul),
    Case(
        "einsum",
        (randn(2, 3, 5, 4), randn(2, 4, 5, 6)),
        lambda a, b: mb.einsum(values=(a, b), equation="nchw,nwhu->nchu"),
        lambda a, b: torch.einsum("nchw,nwhu->nchu", a, b),
    ),
    unary("conv", conv2d((0, 0, 0, 0)), IMAGE, weight=W2.numpy(), pad_type="valid"),
    unary("conv", conv2d((3, 1, 2, 0)), IMAGE, weight=W2.numpy(), pad_type="custom", pad=[2, 0, 3, 1]),
    # same: 7 rows, kernel 3, stride 2 -> 1 before, 1 after; 6 columns, kernel 2, stride 1 -> 1 in all
    unary("conv", conv2d((0, 1, 1, 1), stride=(2, 1)), IMAGE, weight=W2.numpy(), pad_type="same", strides=[2, 1]),
    unary("conv", conv2d((1, 0, 1, 1), stride=(2, 1)), IMAGE, weight=W2.numpy(), pad_type="same_lower", strides=[2, 1]),
    unary("conv", conv2d((0, 0, 0, 0), dilation=(2, 3)), IMAGE, weight=W2.numpy(), pad_type="valid", dilations=[2, 3]),
    unary(
        "conv",
        lambda x: F.conv1d(x, W1, W1[:, 0, 0], groups=2),
        SIGNAL,
        weight=W1.numpy(),
        bias=W1[:, 0, 0].numpy(),
        groups=2,
        pad_type="valid",
    ),
    unary("conv_transpose", lambda x: F.conv_transpose2d(x, WT, stride=2), IMAGE, weight=WT.numpy(), strides=[2, 2]),
    unary(
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, WT, WT[0, :, 0, 0], stride=2, padding=1, dilation=(2, 1)),
        IMAGE,
        weight=WT.numpy(),
        bias=WT[0, :, 0, 0].numpy(),
        strides=[2, 2],
        dilations=[2, 1],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    unary(
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, WT, WT[0, :, 0, 0], stride=2, padding=1, output_padding=1),
        IMAGE,
        weight=WT.numpy(),
        bias=WT[0, :, 0, 0].numpy(),
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        output_shape=[1, 3, 14, 11],
    ),
    unary(
        "max_pool",
        lambda x: F.max_pool2d(x, (3, 2), (2, 1)),
        IMAGE,
        kernel_sizes=[3, 2],
        strides=[2, 1],
        pad_type="valid",
    ),
    # the last window would start in the padding at the end, so there is none
    unary(
        "max_pool",
        lambda x: F.max_pool2d(x, 2, 4, 1, ceil_mode=True),
        IMAGE,
        kernel_sizes=[2, 2],
        strides=[4, 4],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    unary(
        "max_pool",
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        IMAGE,
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    unary(
        "max_pool",
        lambda x: F.max_pool1d(F.pad(x, (0, 1), value=-1e9), 2, 1),
        SIGNAL,
        kernel_sizes=[2],
        strides=[1],
        pad_type="same",
    ),
    unary(
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        IMAGE,
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    unary(
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        IMAGE,
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        exclude_padding_from_average=True,
    ),
    unary("l2_pool", lambda x: F.lp_pool2d(x, 2, 2), IMAGE, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
    unary(
        "layer_norm",
        lambda x: F.layer_norm(x, (4,), torch.arange(4.0), torch.ones(4), 1e-3),
        axes=[-1],
        gamma=np.arange(4, dtype=f32),
        beta=np.ones(4, f32),
        epsilon=f32(1e-3),
    ),
    unary("layer_norm", lambda x: F.layer_norm(x, (3, 4)), axes=[2, 1], epsilon=f32(1e-5)),
    unary(
        "batch_norm",
        lambda x: F.batch_norm(
            x, torch.arange(4.0), torch.arange(4.0) + 1, torch.full((4,), 2.0), torch.full((4,), 3.0), eps=1e-3
        ),
        IMAGE,
        mean=np.arange(4, dtype=f32),
        variance=np.arange(4, dtype=f32) + 1,
        gamma=np.full(4, 2, f32),
        beta=np.full(4, 3, f32),
        epsilon=f32(1e-3),
    ),
    unary(
        "instance_norm",
        lambda x: F.instance_norm(x, weight=torch.arange(4.0), bias=torch.ones(4), eps=1e-3),
        IMAGE,
        gamma=np.arange(4, dtype=f32),
        beta=np.ones(4, f32),
        epsilon=f32(1e-3),
    ),
    unary("l2_norm", lambda x: x / (x.square().sum((1, 2, 3), True) + 1e-3).sqrt(), IMAGE, epsilon=f32(1e-3)),
    unary(
        "local_response_norm",
        lambda x: F.local_response_norm(x, 3, 0.1, 0.5, 2.0),
        IMAGE,
        size=3,
        alpha=f32(0.1),
        beta=f32(0.5),
        k=f32(2),
    ),
    Case(
        "scaled_dot_product_attention float mask",
        (randn(1, 2, 3, 8), randn(1, 2, 5, 8), randn(1, 2, 5, 6), randn(3, 5)),
        lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
        F.scaled_dot_product_attention,
    ),
    Case(
        "scaled_dot_product_attention bool mask",
        (randn(1, 2, 3, 8), randn(1, 2, 5, 8), randn(1, 2, 5, 6), torch.tril(torch.ones(3, 5)) > 0),
        lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
        F.scaled_dot_product_attention,
    ),
]


def resized(mode: str, size: tuple[int, int], **more: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, size, mode=mode, **more)


RESIZE = [
    unary(
        "upsample_nearest_neighbor", resized("nearest", (14, 18)), IMAGE, scale_factor_height=2, scale_factor_width=3
    ),
    unary("resize_nearest_neighbor", resized("nearest", (5, 11)), IMAGE, target_size_height=5, target_size_width=11),
    unary(
        "upsample_bilinear",
        resized("bilinear", (14, 18), align_corners=True),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=3,
        align_corners=True,
    ),
    unary(
        "upsample_bilinear",
        resized("bilinear", (14, 18), align_corners=False),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=3,
        align_corners=False,
    ),
    unary(
        "resize_bilinear",
        resized("bilinear", (5, 11), align_corners=True),
        IMAGE,
        target_size_height=5,
        target_size_width=11,
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
    unary(
        "resize_bilinear",
        resized("bilinear", (5, 11), align_corners=False),
        IMAGE,
        target_size_height=5,
        target_size_width=11,
        sampling_mode="UNALIGN_CORNERS",
    ),
    # the docstring's own grid points for two elements: the image is its coordinate
    unary(
        "resize_bilinear",
        lambda x: torch.tensor([[[0, 0.4, 0.8, 1, 1]]]),
        torch.tensor([[[0.0, 1.0]]]),
        target_size_height=1,
        target_size_width=5,
        sampling_mode="DEFAULT",
    ),
    unary(
        "resize_bilinear",
        lambda x: torch.tensor([[[0.1, 0.3, 0.5, 0.7, 0.9]]]),
        torch.tensor([[[0.0, 1.0]]]),
        target_size_height=1,
        target_size_width=5,
        sampling_mode="OFFSET_CORNERS",
    ),
    unary(
        "resize",
        resized("bilinear", (5, 11), align_corners=False),
        IMAGE,
        shape=[0, 0, 5, 11],
        resized_dims=np.uint32(2),
        interpolation_mode="LINEAR",
        sampling_mode="UNALIGN_CORNERS",
    ),
    unary("crop", lambda x: x[..., 1:5, 0:3], IMAGE, crop_height=[1, 2], crop_width=[0, 3]),
    Case(
        "resample",
        (IMAGE, torch.tanh(randn(1, 5, 3, 2))),
        lambda x, c: mb.resample(
            x=x,
            coordinates=c,
            sampling_mode="bilinear",
            padding_mode="border",
            padding_value=f32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=False,
        ),
        lambda x, c: F.grid_sample(x, c, "bilinear", "border", False),
    ),
]
CONTROL = [
    *(
        Case(
            f"cond {flag}",
            (torch.tensor(flag).reshape(1), X, Y),
            lambda p, x, y: mb.cond(
                pred=mb.squeeze(x=p), _true_fn=lambda: mb.add(x=x, y=y), _false_fn=lambda: mb.mul(x=x, y=y)
            ),
            lambda p, x, y: x + y if p.item() else x * y,
        )
        for flag in (True, False)
    ),
    Case(
        "while_loop",
        (i32([0]), X),
        lambda i, x: mb.while_loop(
            _cond=lambda i, x: mb.squeeze(x=mb.less(x=i, y=np.int32(3))),
            _body=lambda i, x: (mb.add(x=i, y=np.int32(1)), mb.mul(x=x, y=f32(2))),
            loop_vars=(i, x),
        ),
        lambda i, x: (i + 3, x * 8),
    ),
]
TABLES = {
    "elementwise": ELEMENTWISE,
    "activations": ACTIVATIONS,
    "reductions": REDUCTIONS,
    "arrange": ARRANGE,
    "indexing": INDEXING,
    "nn": NN,
    "resize": RESIZE,
    "control": CONTROL,
}


@pytest.fixture(scope="module", params=TABLES)
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[list[Tensor]]]:
    cases = TABLES[request.param]
    return request.param, run_table(cases, save_table(cases, tmp_path_factory.mktemp("mil") / "table.mlpackage"))


def test_every_operation_of_a_table_equals_torch(table: tuple[str, list[list[Tensor]]]) -> None:
    name, results = table
    wrong = []
    for case, found in zip(TABLES[name], results, strict=True):
        wanted = case.expect(*case.inputs)
        wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
        assert len(found) == len(wanted), case.label
        for have, want in zip(found, wanted, strict=True):
            want = want.to(torch.int32) if want.dtype == torch.bool else want
            if have.dtype != want.dtype or have.shape != want.shape:
                wrong.append(f"{case.label}: {have.dtype}{list(have.shape)}, not {want.dtype}{list(want.shape)}")
            elif not torch.allclose(have, want, rtol=2e-5, atol=1e-5):
                wrong.append(f"{case.label}: differs by {(have - want).abs().max()}")
    assert not wrong, "\n".join(wrong)


def test_every_registered_operation_is_in_a_table(tmp_path: Path) -> None:
    seen: set[str] = set()
    for name, cases in (TABLES | {"constexpr": CONSTEXPR, "constexpr 16": CONSTEXPR_16}).items():
        target = ct.target.iOS16 if name == "constexpr 16" else None
        loaded = mil.load(save_table(cases, tmp_path / f"{name}.mlpackage", target))
        seen.update(operation.type for operation in loaded.operations(constants=True))
    assert set(OPS) - seen == set()


U4 = np.array([[0, 15, 7, 8], [1, 2, 3, 4]])
BLOCK_DATA = np.array([[-8, 7, 1, -1], [2, -3, 4, -5]])
BLOCK_SCALE = np.array([[0.5, 2.0], [0.25, 3.0]], f32)
BLOCK_OUT = torch.tensor([[-4.0, 3.5, 2.0, -2.0], [0.5, -0.75, 12.0, -15.0]])
LUT_GROUPS = np.array([1, 5, 9, 13, 2, 10, 18, 26], f32).reshape(2, 1, 4, 1)
LUT_INDICES = np.array([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]])
LUT_OUT = torch.tensor([[9.0, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]])
VECTOR_INDICES = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]])
VECTOR_LUT = np.array([1, 2, 3, 11, 12, 13], f32).reshape(1, 1, 1, 2, 3)
MASK = np.array([[1, 0, 0, 1], [0, 1, 1, 0]])


def constant(label: str, expect: Tensor, build: Callable[[], Any]) -> Case:
    """A constexpr operation, added to a zero input so that the program has one."""
    zero = torch.zeros(expect.shape)
    return Case(label, (zero,), lambda z: mb.add(x=z, y=build()), lambda z: expect)


def every_index(bits: int) -> Case:
    """Every entry of a table of 2 ** bits, read backwards, with a count that leaves padding bits."""
    values = np.arange(2**bits, dtype=f32)
    indices = np.tile(np.arange(2**bits)[::-1], 5)[: 5 * 2**bits - 1]
    dtype = np.uint8 if bits == 8 else getattr(types, f"np_uint{bits}_dtype")
    return constant(
        f"constexpr_lut_to_dense uint{bits}",
        torch.from_numpy(indices.astype(f32)),
        lambda: mb.constexpr_lut_to_dense(indices=indices.astype(dtype), lut=values.reshape(1, -1, 1)),
    )


def sparse_scale() -> Any:
    mask, data = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=MASK.astype(types.np_uint1_dtype),
        nonzero_data=np.array([1, -2, 3, 4], np.int8),
        scale=np.array([[2.0], [10.0]], f32),
        offset=np.array([[1], [0]], np.int8),
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)


def sparse_lut() -> Any:
    mask, data = mb.constexpr_lut_to_sparse(
        indices_mask=MASK.astype(types.np_uint1_dtype),
        indices_nonzero_data=np.array([1, 0, 1, 1]).astype(types.np_uint1_dtype),
        lut=np.array([5, 7], f32).reshape(1, 1, 2, 1),
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)


CONSTEXPR = [
    constant(
        "constexpr_blockwise_shift_scale int4",
        BLOCK_OUT,
        lambda: mb.constexpr_blockwise_shift_scale(data=BLOCK_DATA.astype(types.np_int4_dtype), scale=BLOCK_SCALE),
    ),
    constant(
        "constexpr_blockwise_shift_scale uint4 offset",
        torch.from_numpy((U4 - 8).astype(f32) / 2),
        lambda: mb.constexpr_blockwise_shift_scale(
            data=U4.astype(types.np_uint4_dtype),
            scale=np.full((1, 1), 0.5, f32),
            offset=np.full((1, 1), 8).astype(types.np_uint4_dtype),
        ),
    ),
    constant(
        "constexpr_blockwise_shift_scale int8",
        torch.arange(-60.0, 60.0).reshape(4, 30) * torch.tensor([[1.0], [2], [3], [4]]),
        lambda: mb.constexpr_blockwise_shift_scale(
            data=np.arange(-60, 60, dtype=np.int8).reshape(4, 30), scale=np.array([[1], [2], [3], [4]], f32)
        ),
    ),
    constant(
        "constexpr_lut_to_dense groups",
        LUT_OUT,
        lambda: mb.constexpr_lut_to_dense(indices=LUT_INDICES.astype(types.np_uint2_dtype), lut=LUT_GROUPS),
    ),
    constant(
        "constexpr_lut_to_dense vector axis 1",
        torch.tensor(
            [
                [[1.0, 1], [2, 2], [3, 3], [11, 1], [12, 2], [13, 3]],
                [[11, 11], [12, 12], [13, 13], [1, 1], [2, 2], [3, 3]],
            ]
        ),
        lambda: mb.constexpr_lut_to_dense(
            indices=VECTOR_INDICES.astype(types.np_uint1_dtype), lut=VECTOR_LUT, vector_axis=1
        ),
    ),
    constant(
        "constexpr_lut_to_dense vector axis 2",
        torch.tensor([[[1.0, 2, 3, 1, 2, 3], [11, 12, 13, 1, 2, 3]], [[11, 12, 13, 11, 12, 13], [1, 2, 3, 1, 2, 3]]]),
        lambda: mb.constexpr_lut_to_dense(
            indices=VECTOR_INDICES.astype(types.np_uint1_dtype), lut=VECTOR_LUT, vector_axis=-1
        ),
    ),
    *(every_index(bits) for bits in (1, 2, 3, 4, 6, 8)),
    constant(
        "constexpr_sparse_to_dense",
        torch.tensor([[1.0, 0, 0, 2], [0, 3, 4, 0]]),
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=np.arange(1, 5, dtype=f32), mask=MASK.astype(types.np_uint1_dtype)
        ),
    ),
    constant("sparse blockwise", torch.tensor([[0.0, 0, 0, -6], [0, 30, 40, 0]]), sparse_scale),
    constant("sparse lut", torch.tensor([[7.0, 0, 0, 5], [0, 7, 7, 0]]), sparse_lut),
    constant(
        "constexpr_cast",
        torch.arange(12.0) / 3,
        lambda: mb.constexpr_cast(source_val=(np.arange(12) / 3).astype(np.float16), output_dtype="fp32"),
    ),
]
CONSTEXPR_16 = [
    constant(
        "constexpr_affine_dequantize",
        torch.tensor([[2.0, 4], [9, 12]]),
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=np.array([[2, 3], [3, 4]], np.uint8),
            zero_point=np.array([1, 0], np.uint8),
            scale=np.array([2, 3], f32),
            axis=0,
        ),
    ),
    constant(
        "constexpr_lut_to_dense packed",
        torch.tensor([13.0, 5, 9, 1, 13]),
        lambda: mb.constexpr_lut_to_dense(
            indices=np.array([0b00100111, 0b00000011], np.uint8),
            lut=np.array([1, 5, 9, 13], f32),
            shape=np.array([5], np.uint32),
        ),
    ),
    constant(
        "constexpr_sparse_to_dense packed",
        torch.tensor([0.0, 0, 6, 7, 0]),
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=np.array([6, 7], f32), mask=np.array([0b01100], np.uint8), shape=np.array([5], np.uint32)
        ),
    ),
]


@pytest.mark.parametrize(("cases", "target"), [(CONSTEXPR, "iOS18"), (CONSTEXPR_16, "iOS16")])
def test_compressed_weights_decode_to_the_values_they_encode(cases: list[Case], target: str, tmp_path: Path) -> None:
    results = run_table(cases, save_table(cases, tmp_path / "c.mlpackage", getattr(ct.target, target)))
    for case, (found,) in zip(cases, results, strict=True):
        rounding = 1e-3 if "cast" in case.label else 0.0
        torch.testing.assert_close(found, case.expect(found), rtol=rounding, atol=rounding, msg=case.label)


def test_quantized_weights_are_the_stored_integers_and_scales(tmp_path: Path) -> None:
    loaded = mil.load(save_table(CONSTEXPR[:2], tmp_path / "c.mlpackage"))
    signed, unsigned = loaded.quantized_weights().values()
    assert (signed.op_type, signed.dtype, signed.data.dtype) == ("constexpr_blockwise_shift_scale", "int4", torch.int8)
    assert signed.data.tolist() == BLOCK_DATA.tolist()
    assert signed.scale is not None
    assert signed.scale.tolist() == BLOCK_SCALE.tolist()
    assert signed.offset is None
    assert (unsigned.dtype, unsigned.data.tolist()) == ("uint4", U4.tolist())
    assert unsigned.offset is not None
    assert unsigned.offset.tolist() == [[8]]


def test_quantized_weights_of_tables_are_unpacked_indices(tmp_path: Path) -> None:
    new = mil.load(save_table(CONSTEXPR[3:4], tmp_path / "new.mlpackage")).quantized_weights()
    (entry,) = new.values()
    assert entry.lut is not None
    assert entry.scale is None
    assert entry.data.tolist() == LUT_INDICES.tolist()
    assert entry.lut.flatten().tolist() == LUT_GROUPS.flatten().tolist()
    old = mil.load(save_table(CONSTEXPR_16, tmp_path / "old.mlpackage", ct.target.iOS16)).quantized_weights()
    affine, table, _ = old.values()
    assert affine.axis == 0
    assert affine.data.tolist() == [[2, 3], [3, 4]]
    assert table.data.tolist() == [3, 1, 2, 0, 3]
    assert table.data.dtype == torch.uint8
    assert {entry.name: tuple(entry.data.shape) for entry in old.values()} == {
        entry.name: (2,) if "sparse" in entry.op_type else entry.shape for entry in old.values()
    }


@pytest.mark.parametrize("name", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4"])
def test_unpacking_inverts_the_bit_layout(name: str) -> None:
    dtype = BY_NAME[name]
    low = -8 if dtype.kind == "int" else 0
    values = [low + (5 * i) % 2**dtype.bits for i in range(37)]
    stream = sum((value % 2**dtype.bits) << (i * dtype.bits) for i, value in enumerate(values))
    packed = torch.tensor(list(stream.to_bytes(-(-37 * dtype.bits // 8), "little")), dtype=torch.uint8)
    assert unpack(packed, dtype, 37).tolist() == values


def test_gather_with_a_negative_index_depends_on_the_opset(tmp_path: Path) -> None:
    def gather(x: Any, i: Any) -> Any:
        return mb.gather(x=x, indices=i, axis=0, name="picked")

    inputs = {"x": mb.TensorSpec((3, 2)), "i": mb.TensorSpec((2,), dtype=types.int32)}
    x = randn(3, 2)
    old = mil.load(save(tmp_path / "16.mlpackage", inputs, gather, ct.target.iOS16))
    assert torch.equal(old.run({"x": x, "i": i32([-1, 0])})["picked"], x[[2, 0]])
    new = mil.load(save(tmp_path / "18.mlpackage", inputs, gather))
    assert torch.equal(new.run({"x": x, "i": i32([2, 0])})["picked"], x[[2, 0]])
    with pytest.raises(mil.MilRunError, match=r"gather -> picked"):
        new.run({"x": x, "i": i32([-1, 0])})
    with pytest.raises(mil.MilRunError, match=r"indices from 0 to 3"):
        old.run({"x": x, "i": i32([3, 0])})


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> mil.MilProgram:
    """y = (x * 300) * 300 / 90000 + 1/3 in half precision."""

    def body(x: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16", name="half")
        big = mb.mul(x=mb.mul(x=half, y=np.float16(300)), y=np.float16(300), name="big")
        scaled = mb.mul(x=big, y=np.float16(1 / 90000))
        return mb.cast(x=mb.add(x=scaled, y=np.float16(1 / 3)), dtype="fp32", name="y")

    return mil.load(save(tmp_path_factory.mktemp("half") / "h.mlpackage", {"x": mb.TensorSpec((2,))}, body))


def test_fp16_rounds_every_result_and_fp32_does_not(halves: mil.MilProgram) -> None:
    x = torch.tensor([0.1, 1.0])
    seen: dict[str, Tensor] = {}
    rounded = halves.run({"x": x}, precision="fp16", tap=seen.__setitem__)["y"]
    assert seen["half"].dtype == torch.float16
    assert seen["half"][0] == torch.tensor(0.1).half()
    assert torch.isinf(seen["big"][1])
    assert torch.isinf(rounded[1])
    exact = halves.run({"x": x}, precision="fp32", tap=seen.__setitem__)["y"]
    assert seen["half"].dtype == torch.float32
    assert seen["big"].tolist() == pytest.approx([9000, 90000])
    # constants keep the half-precision values that the file holds
    expected = x * 90000 * torch.tensor(1 / 90000).half().float() + torch.tensor(1 / 3).half().float()
    torch.testing.assert_close(exact, expected)


def test_states_persist_across_runs(tmp_path: Path) -> None:
    inputs = {"x": mb.TensorSpec((2, 3)), "total": mb.StateTensorSpec((2, 3), dtype=types.fp16)}

    def half(x: Any, total: Any) -> Any:
        grown = mb.add(x=mb.read_state(input=total), y=mb.cast(x=x, dtype="fp16"))
        updated = mb.coreml_update_state(state=total, value=grown)
        return mb.cast(x=mb.mul(x=updated, y=np.float16(2)), dtype="fp32", name="doubled")

    loaded = mil.load(save(tmp_path / "s.mlpackage", inputs, half))
    assert [port.name for port in loaded.inputs] == ["x"]
    assert [(port.name, port.shape, port.dtype) for port in loaded.states] == [("total", (2, 3), torch.float16)]
    states: dict[str, Tensor] = {}
    x = torch.ones(2, 3)
    assert loaded.run({"x": x}, states=states)["doubled"].unique().tolist() == [2]
    assert loaded.run({"x": x * 3}, states=states)["doubled"].unique().tolist() == [8]
    assert states["total"].unique().tolist() == [4]
    # without a mapping every run starts from zeros
    assert loaded.run({"x": x})["doubled"].unique().tolist() == [2]
    with pytest.raises(PlanishError, match="state total"):
        loaded.run({"x": x}, states={"total": torch.zeros(3)})


def test_functions_of_one_package_are_loaded_by_name(tmp_path: Path) -> None:
    inputs = {"x": mb.TensorSpec((2, 8))}
    base = torch.arange(16.0).reshape(2, 8)

    def scaled(factor: int) -> Callable[[Any], Any]:
        return lambda x: mb.add(x=mb.mul(x=x, y=f32(factor)), y=base.numpy(), name="y")

    save(tmp_path / "a.mlpackage", inputs, scaled(1))
    save(tmp_path / "b.mlpackage", inputs, scaled(2))
    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(str(tmp_path / "a.mlpackage"), "main", "one")
    descriptor.add_function(str(tmp_path / "b.mlpackage"), "main", "two")
    descriptor.default_function_name = "two"
    package = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(descriptor, str(package))
    x = torch.ones(2, 8)
    assert torch.equal(mil.load(package, "one").run({"x": x})["y"], base + 1)
    assert torch.equal(mil.load(package).run({"x": x})["y"], base + 2)
    with pytest.raises(PlanishError, match="no function 'three'"):
        mil.load(package, "three")


class Two(torch.nn.Module):
    """Two linear layers: an input, weights big enough for the weight file, an output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def flexible(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ct.Shape((1, ct.RangeDim(2, 6, default=4), 8))
    model = ct.convert(
        torch.jit.trace(Two().eval(), torch.zeros(1, 4, 8)),
        inputs=[ct.TensorType("x", shape=shape)],
        outputs=[ct.TensorType("y")],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    package = tmp_path_factory.mktemp("flex") / "flex.mlpackage"
    model.save(str(package))
    return package


def test_flexible_dimensions_follow_the_declared_range(flexible: Path) -> None:
    loaded = mil.load(flexible)
    assert loaded.inputs == (mil.MilPort("x", (1, None, 8), torch.float32),)
    assert loaded.outputs == (mil.MilPort("y", (1, None, 8), torch.float32),)
    for length in (2, 6):
        x = randn(1, length, 8)
        torch.testing.assert_close(loaded.run({"x": x})["y"], Two()(x).detach())
    for length in (1, 7):
        with pytest.raises(PlanishError, match="its shape is"):
            loaded.run({"x": randn(1, length, 8)})


def test_shapes_that_an_input_names_are_the_only_ones_that_it_takes(tmp_path: Path) -> None:
    model = ct.convert(
        torch.jit.trace(Two().eval(), torch.zeros(1, 4, 8)),
        inputs=[ct.TensorType("x", shape=ct.EnumeratedShapes(shapes=[[1, 4, 8], [1, 6, 8]]))],
        outputs=[ct.TensorType("y")],
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "named.mlpackage"))
    loaded = mil.load(tmp_path / "named.mlpackage")
    for length in (4, 6):
        x = randn(1, length, 8)
        torch.testing.assert_close(loaded.run({"x": x})["y"], Two()(x).detach())
    with pytest.raises(PlanishError, match="its shape is") as caught:
        loaded.run({"x": randn(1, 5, 8)})
    assert "(1, 4, 8), (1, 6, 8)" in caught.value.hint


def test_inputs_are_checked_by_name_shape_and_value(flexible: Path) -> None:
    loaded = mil.load(flexible)
    for wrong in ({}, {"z": X}, {"x": X, "z": X}):
        with pytest.raises(PlanishError, match=r"pass exactly \['x'\]"):
            loaded.run(wrong)
    with pytest.raises(PlanishError, match="its shape is"):
        loaded.run({"x": randn(1, 4, 9)})
    with pytest.raises(PlanishError, match="unknown precision"):
        loaded.run({"x": randn(1, 4, 8)}, precision="fp8")  # type: ignore[arg-type]


def test_integers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    inputs = {"i": mb.TensorSpec((2,), dtype=types.int32)}
    loaded = mil.load(save(tmp_path / "i.mlpackage", inputs, lambda i: mb.add(x=i, y=np.int32(1), name="y")))
    assert loaded.run({"i": torch.tensor([1, 2**31 - 2])})["y"].tolist() == [2, 2**31 - 1]
    with pytest.raises(PlanishError, match="do not fit"):
        loaded.run({"i": torch.tensor([1, 2**31])})
    with pytest.raises(PlanishError, match="do not fit"):
        loaded.run({"i": torch.tensor([1.0, 2.0])})


def test_operations_and_tap_name_every_result(flexible: Path) -> None:
    loaded = mil.load(flexible)
    listed = loaded.operations()
    assert [operation.type for operation in listed] == ["linear", "relu", "linear"]
    assert listed[0].outputs[0].dtype == "fp32"
    assert listed[0].outputs[0].shape == (1, None, 16)
    assert listed[1].inputs == (listed[0].outputs[0].name,)
    assert "const" in {operation.type for operation in loaded.operations(constants=True)}
    seen: dict[str, Tensor] = {}
    loaded.run({"x": randn(1, 4, 8)}, tap=seen.__setitem__)
    assert list(seen) == [output.name for operation in listed for output in operation.outputs]
    assert torch.equal(seen[listed[1].outputs[0].name], torch.relu(seen[listed[0].outputs[0].name]))
    weight = next(name for name in (o.outputs[0].name for o in loaded.operations(True)) if name.startswith("first_w"))
    assert torch.equal(loaded.constant(weight), Two().first.weight)


def copy_of(package: Path, into: Path) -> Path:
    for file in package.rglob("*"):
        if file.is_file():
            target = into / file.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return into


def weight_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def edit_spec(package: Path, edit: Callable[[Any], None]) -> None:
    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model = spec._messages().Model.FromString(path.read_bytes())
    block = next(iter(model.mlProgram.functions["main"].block_specializations.values()))
    edit(block)
    path.write_bytes(model.SerializeToString())


def test_flipped_bits_in_the_weights_change_the_numbers(flexible: Path, tmp_path: Path) -> None:
    x = randn(1, 4, 8)
    before = mil.load(flexible).run({"x": x})["y"]
    package = copy_of(flexible, tmp_path / "p.mlpackage")
    raw = bytearray(weight_file(package).read_bytes())
    raw[128 + 3] ^= 0x40  # the exponent of the first weight
    weight_file(package).write_bytes(raw)
    assert not torch.allclose(mil.load(package).run({"x": x})["y"], before)


def test_a_run_leaves_the_weight_file_as_it_is(flexible: Path) -> None:
    before = weight_file(flexible).read_bytes()
    mil.load(flexible).constant(_some_weight(flexible)).add_(1)
    assert weight_file(flexible).read_bytes() == before


def _some_weight(package: Path) -> str:
    names = [operation.outputs[0].name for operation in mil.load(package).operations(constants=True)]
    return next(name for name in names if "weight" in name)


def patched(raw: bytes, offset: int, layout: str, *values: int) -> bytes:
    changed = bytearray(raw)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


# the first record: metadata at byte 64, data at 128
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "header alone needs 64"),
    "version": (lambda raw: patched(raw, 4, "<I", 1), "version 1"),
    "last byte missing": (lambda raw: raw[:-1] if len(raw) % 64 else raw[:-33], "second.* truncated: its data ends"),
    "half": (lambda raw: raw[: len(raw) // 2], "tensor .*(truncated|after the file)"),
    "marker": (lambda raw: patched(raw, 64, "<I", 0xDEADBEE0), "marker is 0xDEADBEE0"),
    "element type": (lambda raw: patched(raw, 68, "<I", 1), "holds fp16, the program declares fp32"),
    "unknown type": (lambda raw: patched(raw, 68, "<I", 99), "unknown type 99"),
    "size": (lambda raw: patched(raw, 72, "<Q", 60), r"holds 60 bytes, fp32\[16\] needs 64"),
    "data offset": (lambda raw: patched(raw, 80, "<Q", 130), "cannot start at byte 130"),
    "data beyond": (lambda raw: patched(raw, 80, "<Q", 1 << 40), "truncated"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_weight_file_is_named(damage: str, flexible: Path, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    package = copy_of(flexible, tmp_path / "p.mlpackage")
    weight_file(package).write_bytes(change(weight_file(package).read_bytes()))
    with pytest.raises(mil.CorruptPackage, match=message):
        mil.load(package)


def test_wrong_padding_of_a_packed_weight_is_named(tmp_path: Path) -> None:
    package = save_table([every_index(3)], tmp_path / "p.mlpackage")
    loaded = spec.read_function(package, None)
    stored = next(
        binding
        for operation in loaded.block.walk()
        for given in operation.inputs.values()
        for binding in given
        if isinstance(binding, graph.Stored) and binding.type.dtype.name == "uint3"
    )
    raw = weight_file(package).read_bytes()
    weight_file(package).write_bytes(patched(raw, stored.offset + 24, "<Q", 2))
    with pytest.raises(mil.CorruptPackage, match="2 padding bits are recorded, 3 are needed"):
        mil.load(package)


def test_missing_files_are_named(flexible: Path, tmp_path: Path) -> None:
    package = copy_of(flexible, tmp_path / "p.mlpackage")
    weight_file(package).unlink()
    with pytest.raises(mil.CorruptPackage, match="weight file is missing"):
        mil.load(package)
    (package / "Manifest.json").write_text(json.dumps({"itemInfoEntries": {}}))
    with pytest.raises(mil.CorruptPackage, match="names no root model"):
        mil.load(package)
    (package / "Manifest.json").unlink()
    with pytest.raises(mil.CorruptPackage, match=r"no Manifest\.json"):
        mil.load(package)


def test_a_damaged_specification_is_named(flexible: Path, tmp_path: Path) -> None:
    package = copy_of(flexible, tmp_path / "p.mlpackage")
    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(mil.CorruptPackage, match="cannot be decoded"):
        mil.load(package)


def test_a_weight_file_outside_the_package_is_refused(flexible: Path, tmp_path: Path) -> None:
    package = copy_of(flexible, tmp_path / "p.mlpackage")

    def point_away(block: Any) -> None:
        for operation in block.operations:
            for value in operation.attributes.values():
                if value.WhichOneof("value") == "blobFileValue":
                    value.blobFileValue.fileName = "@model_path/../../../weight.bin"

    edit_spec(package, point_away)
    with pytest.raises(mil.CorruptPackage, match="lies outside the package"):
        mil.load(package)


def test_all_unknown_operations_are_listed_at_load(flexible: Path, tmp_path: Path) -> None:
    package = copy_of(flexible, tmp_path / "p.mlpackage")

    def rename(block: Any) -> None:
        for operation in block.operations:
            if operation.type in ("relu", "linear"):
                operation.type = f"{operation.type}_v9"

    edit_spec(package, rename)
    with pytest.raises(mil.UnsupportedMilOp) as caught:
        mil.load(package)
    assert [op_type for op_type, _ in caught.value.ops] == ["linear_v9", "relu_v9", "linear_v9"]
    assert caught.value.op_type == "linear_v9"
    assert caught.value.output in str(caught.value)
    assert isinstance(caught.value, PlanishError)


def test_a_result_that_contradicts_its_declared_shape_is_an_error(flexible: Path, tmp_path: Path) -> None:
    package = copy_of(flexible, tmp_path / "p.mlpackage")

    def shrink(block: Any) -> None:
        relu = next(operation for operation in block.operations if operation.type == "relu")
        relu.outputs[0].type.tensorType.dimensions[2].constant.size = 15

    edit_spec(package, shrink)
    with pytest.raises(mil.MilRunError, match=r"computed a shape of \[1, 4, 16\], the package declares"):
        mil.load(package).run({"x": randn(1, 4, 8)})


def test_a_select_that_broadcasts_its_condition_runs_and_is_reported(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        picked = mb.select(cond=mb.greater(x=x, y=f32(0)), a=f32(1), b=f32(-1), name="picked")
        return mb.add(x=mb.mul(x=picked, y=f32(2), name="twice"), y=x, name="y")

    loaded = mil.load(save(tmp_path / "s.mlpackage", {"x": mb.TensorSpec((2, 3))}, body))
    x = randn(2, 3)
    torch.testing.assert_close(loaded.run({"x": x})["y"], x + torch.where(x > 0, 2.0, -2.0))
    assert loaded.contradictions == dict.fromkeys(
        ("picked", "twice"), "computed a shape of [2, 3], the package declares fp32[]"
    )


def test_an_unknown_parameter_is_an_error_not_ignored(flexible: Path, tmp_path: Path) -> None:
    package = copy_of(flexible, tmp_path / "p.mlpackage")

    def add_parameter(block: Any) -> None:
        relu = next(operation for operation in block.operations if operation.type == "relu")
        relu.inputs["slope"].CopyFrom(relu.inputs["x"])

    edit_spec(package, add_parameter)
    with pytest.raises(mil.MilRunError, match="slope"):
        mil.load(package).run({"x": randn(1, 4, 8)})


def test_blob_reader_agrees_with_the_writer_of_coremltools(tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(tmp_path / "w.bin"))
    written = {
        "fp32": (writer.write_float_data, np.arange(7, dtype=f32) / 3),
        "int8": (writer.write_int8_data, np.arange(-3, 4, dtype=np.int8)),
        "uint8": (writer.write_uint8_data, np.arange(250, 257, dtype=np.int64).astype(np.uint8)),
        "int16": (writer.write_int16_data, np.arange(-3, 4, dtype=np.int16) * 9999),
        "uint16": (writer.write_uint16_data, np.arange(65530, 65536, dtype=np.uint16)),
        "int32": (writer.write_int32_data, np.arange(-3, 4, dtype=np.int32) * 99999),
        "uint32": (writer.write_uint32_data, np.arange(3, dtype=np.uint32) + np.uint32(2**32 - 4)),
    }
    offsets = {name: write(values) for name, (write, values) in written.items()}
    del writer
    file = blob.BlobFile(tmp_path / "w.bin")
    for name, (_, values) in written.items():
        found = file.read(offsets[name], BY_NAME[name], values.shape, name)
        assert found.tolist() == values.tolist(), name


class Encoder(torch.nn.Module):
    """A tiny random BERT that returns its last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=100,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            initializer_range=0.1,
        )
        config._attn_implementation = "eager"
        self.model = BertModel(config, add_pooling_layer=False).eval()
        # transformers starts biases at zero, and coremltools turns a linear without a bias into a matmul
        for name, parameter in self.model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return output


IDS = torch.randint(0, 100, (1, 16), generator=torch.Generator().manual_seed(3))
ATTEND = (torch.arange(16) < 11).to(torch.int64).unsqueeze(0)


@pytest.fixture(scope="module")
def bert() -> tuple[Any, Tensor]:
    encoder = Encoder()
    exported = torch.export.export(encoder, (IDS, ATTEND)).run_decompositions()
    model = ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    return model, encoder(IDS, ATTEND).detach()


def hidden(package: Path, precision: mil.Precision = "fp32") -> Tensor:
    loaded = mil.load(package)
    (output,) = loaded.run({"input_ids": IDS, "attention_mask": ATTEND}, precision).values()
    return output


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def test_bert_equals_torch(bert: tuple[Any, Tensor], tmp_path: Path) -> None:
    model, expected = bert
    model.save(str(tmp_path / "b.mlpackage"))
    assert cosine(hidden(tmp_path / "b.mlpackage"), expected) >= 0.999999
    half = hidden(tmp_path / "b.mlpackage", "fp16")
    assert half.dtype == torch.float16
    assert cosine(half, expected) >= 0.99999


LINEAR = {
    "int8": cto.OpLinearQuantizerConfig(mode="linear_symmetric"),
    "int4": cto.OpLinearQuantizerConfig(mode="linear", dtype="int4", granularity="per_block", block_size=16),
    "uint4": cto.OpPalettizerConfig(mode="uniform", nbits=4),
}


@pytest.mark.parametrize(("dtype", "limit"), [("int8", 0.9995), ("int4", 0.97), ("uint4", 0.97)])
def test_bert_compressed_by_coremltools(dtype: str, limit: float, bert: tuple[Any, Tensor], tmp_path: Path) -> None:
    model, expected = bert
    config = cto.OptimizationConfig(op_type_configs={"linear": LINEAR[dtype]})
    compress = cto.palettize_weights if dtype == "uint4" else cto.linear_quantize_weights
    package = tmp_path / "b.mlpackage"
    compress(model, config).save(str(package))
    loaded = mil.load(package)
    weights = loaded.quantized_weights()
    assert len(weights) == 12
    assert {entry.dtype for entry in weights.values()} == {dtype}
    assert limit <= cosine(hidden(package), expected) < 1 - 1e-9
    # an independent decoder must give the same weights as the one that ships with the encoder
    dense = decoded_by_coremltools(package)
    for name in weights:
        assert torch.equal(loaded.constant(name), dense[name]), name


def decoded_by_coremltools(package: Path) -> dict[str, Tensor]:
    from coremltools.converters.mil.frontend.milproto.load import load as load_program

    model = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    folder = str(weight_file(package).parent)
    program: Program = load_program(model, model.specificationVersion, folder)
    return {
        operation.outputs[0].name: torch.from_numpy(np.asarray(operation.materialized_val_inference()))
        for operation in program.functions["main"].operations
        if operation.op_type.startswith("constexpr_")
    }
