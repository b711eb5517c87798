"""What a consumer asks of a bundle: a small TOML file. Every key is known or refused; docs/trust.md lists them."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from planish.bundle.part import Sha256
from planish.request_checks import Problem
from planish.trust.check import Identity, Trusted
from planish.trust.keys import public_key
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

EVERY = "*"  # a rule for every target that has none of its own
_LARGEST = 256 * 1024
_HINT = "docs/trust.md lists every key of a policy"
Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Names = Annotated[tuple[Name, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class IdentityRule(_Rule):
    """Somebody known to Sigstore."""

    identity: Name
    issuer: Name


class SignersRule(_Rule):
    """Whose signatures count; at least one of keys, certificates and identities."""

    keys: Names = Field(default=(), description="PEM files of public keys, relative to the policy")
    certificates: Names = Field(default=(), description="PEM files of root certificates, relative to the policy")
    subjects: Names = Field(default=(), description="names that a certificate may have; left out: any")
    identities: Annotated[
        tuple[IdentityRule, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
    ] = ()

    @model_validator(mode="after")
    def _somebody(self) -> SignersRule:
        if not (self.keys or self.certificates or self.identities):
            raise ValueError("name somebody: keys, certificates or identities")
        if self.subjects and not self.certificates:
            raise ValueError("subjects are names in certificates: name certificates, too")
        return self


class SourceRule(_Rule):
    """A source that is allowed: every key that is given must hold."""

    hub: Name | None = Field(default=None, description='hub id; "*" stands for a part of a name: "BAAI/bge-*"')
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    files: dict[Name, Sha256] | None = Field(default=None, description="file of the source -> sha256")

    @model_validator(mode="after")
    def _something(self) -> SourceRule:
        if self.hub is None and not self.files:
            raise ValueError("name a hub id, or files with their hashes")
        if self.revision is not None and self.hub is None:
            raise ValueError("a revision needs a hub id")
        return self


class TargetRule(_Rule):
    """What is asked of a target."""

    evidence: Annotated[Evidence, Field(strict=False)] = Field(description="the weakest grade that will do")
    checks: Names = Field(default=(), description="checks that must have passed")


class Policy(_Rule):
    """What a consumer asks of a bundle."""

    version: Literal[1]
    signature: SignersRule
    evidence: SignersRule | None = Field(
        default=None, description="whose results from devices count; left out: nobody's"
    )
    sources: (
        Annotated[tuple[SourceRule, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)] | None
    ) = Field(default=None, description="sources that are allowed; left out: any")
    recipes: Names | None = Field(default=None, description="recipes that are allowed; left out: any")
    licenses: Names | None = Field(default=None, description="licences of the source that are allowed; left out: any")
    max_age_days: Annotated[int | float, Field(gt=0, le=36500)] | None = None
    planish: Name | None = Field(default=None, description="versions of planish that may have made it")
    targets: dict[Name, TargetRule] = Field(min_length=1)

    @model_validator(mode="after")
    def _sensible(self) -> Policy:
        for key in ("sources", "recipes", "licenses"):
            if getattr(self, key) == ():
                raise ValueError(f"{key}: an empty list allows nothing; leave the key out to allow all")
        try:
            SpecifierSet(self.planish or "")
        except InvalidSpecifier as problem:
            raise ValueError(f"planish: {problem}") from problem
        return self


@dataclass(frozen=True)
class Demands:
    """A policy with its keys read.

    Args:
        rules: the policy.
        signers: whose signature the bundle must have.
        devices: whose results count.
    """

    rules: Policy
    signers: Trusted
    devices: Trusted


class PolicyError(PlanishError):
    """All that is wrong with a policy, at once."""

    def __init__(self, problems: tuple[Problem, ...], file: Path) -> None:
        self.problems = problems
        if len(problems) == 1:
            super().__init__(problems[0].what, problems[0].where, problems[0].hint)
            return
        listed = "".join(f"\n  {p.where}: {p.what} {p.hint}" for p in problems)
        super().__init__(f"{len(problems)} things are wrong with the policy:{listed}", str(file), _HINT)


def load_policy(file: Path) -> Demands:
    """Read a policy and the keys that it names.

    Raises:
        PolicyError: unknown keys, wrong values: all of them at once.
        PlanishError: the file, or a key that it names, cannot be read.
    """
    table = _parse(_read(file), file)
    try:
        rules = Policy.model_validate(table)
    except ValidationError as problem:
        raise PolicyError(tuple(_explained(e, file) for e in problem.errors(include_url=False)), file) from problem
    _check_names(rules, file)
    nobody = Trusted()
    return Demands(rules, _trusted(rules.signature, file), _trusted(rules.evidence, file) if rules.evidence else nobody)


def _trusted(rule: SignersRule, file: Path) -> Trusted:
    return Trusted(
        tuple(public_key(file.parent / name) for name in rule.keys),
        tuple(file.parent / name for name in rule.certificates),
        rule.subjects,
        tuple(Identity(who.identity, who.issuer) for who in rule.identities),
    )


def _check_names(rules: Policy, file: Path) -> None:
    from planish.recipes import RECIPES
    from planish_targets import registry

    known = {
        "targets": (list(rules.targets), [EVERY, *registry.known()]),
        "recipes": (rules.recipes or (), list(RECIPES)),
    }
    problems = [
        Problem(f"{key}: unknown name {name!r}.", str(file), _nearest(name, names))
        for key, (asked, names) in known.items()
        for name in asked
        if name not in names
    ]
    if problems:
        raise PolicyError(tuple(problems), file)


def _explained(error: Any, file: Path) -> Problem:
    path = tuple(str(part) for part in error["loc"])
    key = ".".join(path) or "the policy"
    if error["type"] == "extra_forbidden":
        fields = _fields(path[:-1])
        return Problem(f"unknown key {key!r}.", str(file), _nearest(path[-1], fields) if fields else _HINT)
    if error["type"] == "missing":
        return Problem(f"{key} is missing.", str(file), _HINT)
    message = str(error["msg"]).removeprefix("Value error, ")
    return Problem(f"{key}: {message}.", str(file), _HINT)


def _fields(path: tuple[str, ...]) -> list[str]:
    tables: dict[str, type[BaseModel]] = {"signature": SignersRule, "evidence": SignersRule, "sources": SourceRule}
    tables["targets"] = TargetRule
    model = Policy if not path else tables.get(path[0])
    return list(model.model_fields) if model is not None else []


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _read(file: Path) -> str:
    again = "give the path of a policy in TOML (docs/trust.md)"
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise PlanishError(f"The policy cannot be read: {reason}.", str(file), again) from problem
    if len(data) > _LARGEST:
        raise PlanishError("The policy is too large to be one.", str(file), again)
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as problem:
        raise PlanishError("The policy is not UTF-8 text.", str(file), "save it as UTF-8") from problem


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        at = re.search(r" \(at line (\d+), column \d+\)", str(problem))
        where = f"{file}:{at.group(1)}" if at else str(file)
        message = str(problem).replace(at.group(0), "") if at else str(problem)
        raise PlanishError(f"The policy is not valid TOML: {message}.", where, _HINT) from problem
