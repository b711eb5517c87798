"""Emit operators of the com.microsoft domain, and plain ones, from torch's translation functions."""

from __future__ import annotations

from typing import Any

_TYPES = [f"tensor({t})" for t in ("float", "float16", "int32", "int64", "uint8", "int8", "bool")]


def contrib(name: str, inputs: list[Any], attributes: dict[str, Any] | None = None) -> Any:
    """One com.microsoft operator with one output. Inputs that are None are left out by position."""
    import onnx.defs
    from onnxscript import values

    schema, attributes = onnx.defs.OpSchema, attributes or {}
    kinds = {int: schema.AttrType.INT, float: schema.AttrType.FLOAT}
    option = schema.FormalParameterOption
    definition = schema(
        name,
        "com.microsoft",
        1,
        inputs=[
            schema.FormalParameter(f"i{n}", f"T{n}", param_option=option.Optional if n else option.Single)
            for n in range(len(inputs))
        ],
        outputs=[schema.FormalParameter("o", "TO")],
        type_constraints=[(f"T{n}", _TYPES, "") for n in range(len(inputs))] + [("TO", _TYPES, "")],
        attributes=[schema.Attribute(k, kinds[type(v)], "", required=False) for k, v in attributes.items()],
    )
    return values.Op(values.Opset("com.microsoft", 1), name, definition)(*inputs, **attributes)
