"""Which packages a target needs, and whether they are here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from planish_passes.errors import PlanishError
from planish_targets.contract import NeedsMore, Target


@dataclass(frozen=True)
class Requirement:
    """One package of a target: the versions that planish is tested with, and the one that is installed (None: none)."""

    package: str
    window: str
    installed: str | None

    @property
    def ok(self) -> bool:
        """Installed, in the window."""
        return self.installed is not None and SpecifierSet(self.window).contains(self.installed, prereleases=True)


def requirements(target: Target) -> tuple[Requirement, ...]:
    """Every package of a target, installed or not."""
    return tuple(Requirement(p, w, _installed(p)) for p, w in target.requires.items())


_SAME_MODULE = {"onnxruntime": "onnxruntime-directml"}  # Windows builds of one package under another name


def _installed(package: str) -> str | None:
    for name in (package, _SAME_MODULE.get(package)):
        try:
            if name is not None:
                return version(name)
        except PackageNotFoundError:
            continue
    return None


def demand(target: Target) -> None:
    """Nothing, when all that a target needs is there.

    Raises:
        PlanishError: a package or something else (an SDK) is missing, or outside its window; the hint mends it.
    """
    wrong = [r for r in requirements(target) if not r.ok]
    if wrong:
        found = ", ".join(f"{r.package} {r.installed or 'is missing'} (wanted: {r.window})" for r in wrong)
        raise PlanishError(
            f"target {target.name!r} cannot be compiled here: {found}",
            "--target",
            f"pip install 'planish[{target.extra}]'",
        )
    lacking = target.missing() if isinstance(target, NeedsMore) else None
    if lacking is not None:
        raise PlanishError(f"target {target.name!r} cannot be compiled here: {lacking.what}", "--target", lacking.mend)
