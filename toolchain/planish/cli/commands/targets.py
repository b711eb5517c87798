"""planish targets"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planish.cli import options
from planish.cli.console import emit_json, out, results_only

if TYPE_CHECKING:
    from planish.doctor import TargetHealth
    from planish_targets.contract import Target


def targets_command(
    as_json: options.Json = False,
) -> None:
    """List targets, their variants and recipes: what each can encode, what it needs, what can be proved about it here.

    \b
    Examples:
      planish targets
      planish targets --json
    """
    with results_only():
        from planish.doctor import examine_target
        from planish_targets import registry

        rows = [(target, examine_target(target)) for target in registry.known().values()]
    if as_json:
        plain, variants = ([_to_json(*row) for row in rows if row[1].variant is kind] for kind in (False, True))
        emit_json({"targets": plain, "variants": variants, "recipes": _recipes()})
        return
    _show(rows)


def _to_json(target: Target, health: TargetHealth) -> dict[str, object]:
    can = target.capabilities
    return {
        "target": target.name,
        "summary": target.summary,
        "recipes": _encodes(target),
        "bits": can.bits,
        "dynamic_shapes": can.dynamic_shapes,
        "requires": target.requires,
        "install": f"planish[{target.extra}]" if target.extra else "planish",
        "installed": health.installed,
        "ok": health.ok,
        "evidence": health.evidence,
        "device": health.device,
    }


def _recipes() -> list[dict[str, object]]:
    from planish.recipes import RECIPES

    return [
        {"recipe": r.name, "summary": r.summary, "gates": {"cosine": r.cosine, "agreement": r.agreement}}
        for r in RECIPES.values()
    ]


def _encodes(target: Target) -> list[str]:
    from planish.recipes import RECIPES

    bits = target.capabilities.bits
    needed = {r.name: {r.format.bits} if r.format else {4, 8} if r.keeps else set() for r in RECIPES.values()}
    return [name for name, widths in needed.items() if widths <= bits]


def _show(rows: list[tuple[Target, TargetHealth]]) -> None:
    from planish.recipes import RECIPES

    console = out()
    begun = False
    for target, health in rows:
        if health.variant and not begun:
            begun = True
            console.print("variants", style="bold", end="  ")
            console.print("compiled for when -t names them, never by default\n", style="dim")
        console.print(target.name, style="bold cyan", end="  ")
        console.print(target.summary, soft_wrap=True)
        shapes = "dynamic or fixed" if target.capabilities.dynamic_shapes else "fixed"
        bits = ", ".join(map(str, sorted(target.capabilities.bits)))
        widths = f"weights of {bits} bits" if bits else "float weights only"
        console.print(f"  recipes {', '.join(_encodes(target))} ({widths}); shapes {shapes}")
        console.print(f"  needs {', '.join(f'{p} {w}' for p, w in target.requires.items())}", soft_wrap=True)
        if not health.installed:
            console.print("  not installed", style="yellow", end=": ")
            console.print(health.findings[0].mend, style="bold", soft_wrap=True)
        elif not health.ok:
            console.print("  cannot be compiled here", style="yellow", end=": ")
            console.print(f"{health.findings[0].what}; {health.findings[0].mend}", soft_wrap=True)
        elif health.evidence is None:
            console.print("  compiles here, nothing here runs it", style="yellow", end=": ")
            console.print(health.device, soft_wrap=True)
        else:
            console.print(f"  {health.evidence} here", style="green", end=": ")
            console.print(health.device, soft_wrap=True)
        console.print()
    console.print("recipes", style="bold")
    for recipe in RECIPES.values():
        gates = f"cosine >= {recipe.cosine:g}, agreement >= {recipe.agreement:g}"
        console.print(f"  {recipe.name:<8}{recipe.summary}\n          gates: {gates}", soft_wrap=True)
