"""From a program to the bytes of a .pte, through executorch's edge dialect and a partitioner (XNNPACK's by default)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from planish_passes.errors import PlanishError
from planish_passes.memory import give_back_memory
from planish_passes.program import Port, Program, module_path, op_name
from planish_targets.executorch.frugal import frugal
from planish_targets.executorch.lean import decomposed, lean
from planish_targets.executorch.partition import partitioner
from planish_targets.executorch.states import KEPT, Cache, inside, settled
from planish_targets.executorch.tables import with_kernels
from planish_targets.quiet import quiet

LATER = (*KEPT, "planish.embedding_q")  # composites that become executorch's own kernels here
Edge = Callable[[ExportedProgram, Mapping[str, object]], Any]  # program and constant methods -> EdgeProgramManager
# What executorch's passes raise at programs that they do not take; anything else is a defect and keeps its traceback.
_LOWERING_ERRORS = (RuntimeError, ValueError, NotImplementedError, AssertionError, KeyError, TypeError)


@dataclass(frozen=True)
class Written:
    """What lowering tells about the file that it wrote.

    Args:
        delegated: operations in delegates.
        portable: operations left to portable kernels.
        subgraphs: delegates, each one a hand-over at run time.
        kernels: source module of each instruction of the plan, "" where unknown.
        handles: debug handle of a delegated operation -> source module.
        caches: buffers that live from call to call.
        inputs: ports of the file, which are not those of the program when caches are inside.
        longest: most tokens of one call of a program with caches; 0 when there are none.
        kernel_libraries: folders of the package whose kernels the file needs beside the runtime's own.
        inner: "delegate:operation", in the payload's own words -> source module; of delegates that record it.
    """

    delegated: int
    portable: int
    subgraphs: int
    kernels: tuple[str, ...]
    handles: Mapping[int, str]
    caches: tuple[Cache, ...]
    inputs: tuple[Port, ...]
    longest: int = 0
    kernel_libraries: tuple[str, ...] = ()
    inner: Mapping[str, str] = field(default_factory=dict)


def write(
    program: Program,
    to: Path,
    facts: Mapping[str, object] | None = None,
    edge: Edge | None = None,
    *,
    split: bool = False,
) -> Written:
    """Lower and write.

    Args:
        program: in the form that the target's passes make.
        to: the file.
        facts: values of constant methods, by name.
        edge: partitions and lowers to a delegate; None = XNNPACK.
        split: constants go into a .ptd file of the same name, if there are any.

    Raises:
        PlanishError: an operator has no form here; names it, its module and the way out.
    """
    _check(program)
    with quiet(), lean(), frugal(), torch.no_grad(), settled(program.graph):
        program, caches = inside(with_kernels(program.copy()))
        manager, written = _lower(_with_weights(program), program, facts or {}, edge or _xnnpack, to if split else None)
        longest = program.axes["sequence"][1] if caches and "sequence" in program.axes else int(bool(caches))
        written = replace(written, caches=caches, longest=longest)
        with to.open("wb") as file:
            manager.write_to_file(file)
        manager.write_tensor_data_to_file(str(to.parent))
    return written


def to_edge(exported: ExportedProgram, facts: Mapping[str, object], partitioner: Any) -> Any:
    """executorch's edge program with what `partitioner` takes lowered to its delegate."""
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    return to_edge_transform_and_lower(
        decomposed(exported, partitioner.ops_to_not_decompose(exported)[0]),
        partitioner=[partitioner],
        constant_methods=dict(facts) or None,
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )


def _xnnpack(exported: ExportedProgram, facts: Mapping[str, object]) -> Any:
    return to_edge(exported, facts, partitioner())


def _lower(
    exported: ExportedProgram, program: Program, facts: Mapping[str, object], lowered: Edge, split: Path | None
) -> tuple[Any, Written]:
    try:
        edge = lowered(exported, facts)
    except _LOWERING_ERRORS as problem:
        raise _refusal(program.graph, problem) from problem
    graph = edge.exported_program().graph_module
    handles, counts = _delegated_modules(graph), [len(_calls(d.original_module)) for d in _delegates(graph)]
    portable = sum("delegate" not in n.name for n in _calls(graph))
    modules = _modules_by_handle(graph)
    try:
        manager = edge.to_executorch(_outside(edge, split.stem) if split else None)
    except _LOWERING_ERRORS as problem:
        raise _refusal(graph.graph, problem) from problem
    _check_kernels(manager, modules)
    kernels = _kernel_modules(manager, modules)
    libraries = _libraries(manager)
    return manager, Written(
        sum(counts),
        portable,
        len(counts),
        kernels,
        handles,
        (),
        program.inputs,
        kernel_libraries=libraries,
        inner=_inner_modules(manager, handles),
    )


def _outside(edge: Any, name: str) -> Any:
    """Settings that put constants into a file of this name. The runtime looks for names in both files, so that what
    delegates ask for only changes its place."""
    from executorch.exir import ExecutorchBackendConfig

    store = edge._named_data_store
    if store.pte_data:
        store.external_data[name], store.pte_data = store.pte_data, {}
    return ExecutorchBackendConfig(external_constants=lambda node: name)


def _check(program: Program) -> None:
    """Refuse what no later stage could name as well: composites that are left over."""
    for node in program.graph.nodes:
        if node.op == "call_function" and op_name(node).startswith("planish.") and op_name(node) not in LATER:
            raise PlanishError(
                f"ExecuTorch has no form for {op_name(node)} with these options: {_arguments(node)}",
                f"module {module_path(node) or '(top)'}",
                "choose groups of 32, 64 or 128 input features or one scale per output channel, or another target",
            )


def _arguments(node: fx.Node) -> str:
    plain = [str(a) for a in node.args if not isinstance(a, fx.Node)]
    shapes = [str(list(a.meta["val"].shape)) for a in node.args if isinstance(a, fx.Node)]
    return ", ".join(shapes + plain)


def _with_weights(program: Program) -> ExportedProgram:
    """The program with its weights in memory, each a tensor of its own storage, and module paths on every node."""
    exported = program.copy().exported
    for name in program.weight_names().values():
        exported._state_dict[name] = _alone(program.weights.read(name).detach())
    give_back_memory()
    exported._example_inputs = None
    for node in exported.graph.nodes:
        if node.op == "placeholder" and not node.meta["val"].is_contiguous():
            # A folded `expand` leaves a stride of 0 in the type, which executorch refuses; the weight itself is whole.
            node.meta["val"] = node.meta["val"].contiguous()
        path = module_path(node)
        node.meta["nn_module_stack"] = {path: (path, "")} if path else {}
    return exported


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a storage that holds nothing else: the serialiser writes the whole storage behind a view."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _stack_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _calls(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "call_function"]


def _delegates(graph: fx.GraphModule) -> list[Any]:
    called = [n for n in graph.graph.nodes if n.op == "get_attr" and n.name.startswith("lowered_module_")]
    return [getattr(graph, n.name) for n in called]


def _modules_by_handle(graph: fx.GraphModule) -> dict[int, str]:
    return {int(n.meta["debug_handle"]): _stack_path(n) for n in _calls(graph) if n.meta.get("debug_handle")}


def _delegated_modules(graph: fx.GraphModule) -> dict[int, str]:
    return {h: path for d in _delegates(graph) for h, path in _modules_by_handle(d.original_module).items()}


def _kernel_modules(manager: Any, modules: Mapping[int, str]) -> tuple[str, ...]:
    """The source module of each instruction of the plan."""
    origin = manager.debug_handle_map["forward"]
    count = len(manager.executorch_program.execution_plan[0].chains[0].instructions)
    return tuple(modules.get(h, "") if isinstance(h := origin.get(i), int) else "" for i in range(count))


def _inner_modules(manager: Any, handles: Mapping[int, str]) -> dict[str, str]:
    """Source module of each operation inside a delegate that records where its operations come from."""
    instructions = manager.executorch_program.execution_plan[0].chains[0].instructions
    found = {}
    for at, told in manager.delegate_map["forward"].items():
        delegate = instructions[at].instr_args.delegate_index
        for name, origin in (told["delegate_map"] or {}).items():
            module = next((handles[h] for h in origin if handles.get(h)), "") if origin else ""
            if module:
                found[f"{delegate}:{name}"] = module
    return found


def _check_kernels(manager: Any, modules: Mapping[int, str]) -> None:
    """Refuse operators that lower but that no portable kernel computes: such a file fails only when it is loaded."""
    plan = manager.executorch_program.execution_plan[0]
    known = portable_kernels()
    for operator in plan.operators:
        name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
        if known and name not in known and not name.startswith("executorch_prim::"):
            kernels = _kernel_modules(manager, modules)
            calls = [getattr(i.instr_args, "op_index", None) for i in plan.chains[0].instructions]
            at = next((k for k, c in zip(kernels, calls, strict=True) if c == plan.operators.index(operator)), "")
            raise _no_form(name, at)


_LIBRARIES = {"llama": "extension.llm.custom_ops", "quantized_decomposed": "kernels.quantized"}


def _libraries(manager: Any) -> tuple[str, ...]:
    spaces = {o.name.split("::")[0] for o in manager.executorch_program.execution_plan[0].operators}
    return tuple(sorted(_LIBRARIES[s] for s in spaces & set(_LIBRARIES)))


def portable_kernels() -> frozenset[str]:
    """Operators with a portable kernel, by the list that ships with executorch; empty when it ships none."""
    from importlib.resources import files

    names: set[str] = set()
    folder = files("executorch").joinpath("kernels")
    tables = [
        folder.joinpath("portable").joinpath(t) for t in ("functions.yaml", "custom_ops.yaml", "et_copy_ops.yaml")
    ]
    for path in (*tables, folder.joinpath("quantized").joinpath("quantized.yaml")):
        if path.is_file():
            text = path.read_text()
            names |= {f"aten::{op}" for op in re.findall(r"^- op: ([\w.]+)", text, re.MULTILINE)}
            functions = re.findall(r"^- func: ([\w:.]+)", text, re.MULTILINE)
            names |= {f if "::" in f else f"aten::{f}" for f in functions}
    return frozenset(names) | _ELSEWHERE if names else frozenset()


# Kernels that no list of the wheel names: primitives of the runtime, and the operators for language models.
_ELSEWHERE = frozenset(
    ("aten::sym_size.int", "aten::_local_scalar_dense", "llama::custom_sdpa.out", "llama::update_cache.out")
)


def _no_form(operator: str, module: str) -> PlanishError:
    return PlanishError(
        f"ExecuTorch has no kernel and no delegate for {operator}",
        f"module {module or '(unknown)'}",
        "choose another target for this model, or report the operator with the model's config.json",
    )


def _refusal(graph: fx.Graph, problem: Exception) -> PlanishError:
    """What executorch says, with the operator it is about and that operator's module, as far as they can be told."""
    text = " ".join(str(problem).split())
    for operator in re.findall(r"((?:aten|quantized_decomposed)(?:::|\.)\w+)", text):
        short = operator.replace("::", ".").split(".")[1]
        for node in graph.nodes:
            if node.op == "call_function" and short in str(node.target).replace("::", ".").split("."):
                return _no_form(f"{operator} ({text[:200]})", _stack_path(node) or module_path(node))
    return PlanishError(
        f"ExecuTorch cannot lower this program: {type(problem).__name__}: {text[:300]}",
        "to_edge_transform_and_lower",
        "choose another target for this model, or report it with the model's config.json",
    )
