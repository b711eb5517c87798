"""Emit operators of the com.microsoft domain, and plain ones, from torch's translation functions."""

from __future__ import annotations

from typing import Any

MICROSOFT = "com.microsoft"
_TYPES = [f"tensor({t})" for t in ("float", "float16", "int32", "int64", "uint8", "int8", "bool")]


def contrib(
    name: str, inputs: list[Any], attributes: dict[str, Any] | None = None, *, outputs: int = 1, domain: str = MICROSOFT
) -> Any:
    """One operator of com.microsoft (or another domain). Inputs that are None are left out by position."""
    import onnx.defs
    from onnxscript import values

    schema, attributes = onnx.defs.OpSchema, attributes or {}
    kinds = {int: schema.AttrType.INT, float: schema.AttrType.FLOAT}
    option = schema.FormalParameterOption
    definition = schema(
        name,
        domain,
        1,
        inputs=[
            schema.FormalParameter(f"i{n}", f"T{n}", param_option=option.Optional if n else option.Single)
            for n in range(len(inputs))
        ],
        outputs=[schema.FormalParameter(f"o{n}", f"U{n}") for n in range(outputs)],
        type_constraints=[(f"T{n}", _TYPES, "") for n in range(len(inputs))]
        + [(f"U{n}", _TYPES, "") for n in range(outputs)],
        attributes=[schema.Attribute(k, kinds[type(v)], "", required=False) for k, v in attributes.items()],
    )
    return values.Op(values.Opset(domain, 1), name, definition)(*inputs, **attributes)
