"""Hold a bundle against a policy. What the bundle does not say counts against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from planish.bundle.manifest import Manifest, SourceEntry, TargetEntry
from planish.bundle.verdicts import FailedEntry, PassedEntry, VerdictEntry
from planish.trust.evidence import CHECK, Judged
from planish.trust.policy import EVERY, Policy, SourceRule, TargetRule
from planish.verdict import Failed, Passed
from planish_targets.contract import Evidence

NAME = "policy"  # of the verdicts
_ORDER = tuple(reversed(Evidence))  # from weak to strong
_CLOCKS = timedelta(days=1)  # that two clocks may be apart


def judge(policy: Policy, manifest: Manifest, results: Sequence[Judged], now: datetime | None = None) -> list[Failed]:
    """Every rule that the bundle breaks, by name; [] when it keeps all.

    The signature is not judged here: without a good one nothing that the manifest says counts.

    Args:
        policy: the rules.
        manifest: of the bundle.
        results: what devices sent back, already judged against the keys that the policy names for them.
        now: time of the judgement.
    """
    broken = [
        *_whole(policy, manifest, now or datetime.now(UTC)),
        *(
            fault
            for name, entry in manifest.targets.items()
            for fault in _target(policy, manifest, name, entry, results)
        ),
        *_absent(policy, manifest),
    ]
    return [Failed(NAME, Evidence.STRUCTURAL, f"{rule}: {text}") for rule, text in broken]


Broken = Iterator[tuple[str, str]]


def _whole(policy: Policy, manifest: Manifest, now: datetime) -> Broken:
    source = manifest.source
    if policy.sources is not None and not any(_allows(rule, source) for rule in policy.sources):
        commit = f" at {source.revision}" if source.revision else ""
        yield "sources", f"{source.location}{commit} ({source.kind}) is not one that is allowed"
    if policy.recipes is not None and manifest.recipe.name not in policy.recipes:
        yield "recipes", f"{manifest.recipe.name} is not one of {', '.join(policy.recipes)}"
    if policy.licenses is not None and (source.license.id or "").lower() not in {n.lower() for n in policy.licenses}:
        yield "licenses", f"{source.license.id or 'none named'} is not one of {', '.join(policy.licenses)}"
    if policy.max_age_days is not None:
        yield from _age(policy.max_age_days, manifest.created, now)
    if policy.planish is not None and not _within(manifest.planish, policy.planish):
        yield "planish", f"version {manifest.planish} is not {policy.planish}"
    for verdict in manifest.verdicts:
        if isinstance(verdict, FailedEntry):
            yield "result", f"the program failed {verdict.check}: {verdict.reason}"


def _absent(policy: Policy, manifest: Manifest) -> Broken:
    for name in policy.targets:
        if name != EVERY and not any(n.partition("/")[0] == name for n in manifest.targets):
            yield f"targets.{name}", f"the bundle has it not; it has {', '.join(manifest.targets) or 'none'}"


def _target(policy: Policy, manifest: Manifest, name: str, entry: TargetEntry, results: Sequence[Judged]) -> Broken:
    plain = name.partition("/")[0]
    own = policy.targets.get(plain)
    rule, key = own or policy.targets.get(EVERY), f"targets.{name}"
    if entry.artifact is None:
        if own is not None:
            yield key, "the bundle has no artifact for it"
        return
    if rule is None:
        yield key, f'no rule allows this target; name it, or every one with [targets."{EVERY}"]'
        return
    sent = [r for r in results if r.target == name]
    for result in sent:
        if isinstance(result.verdict, Failed):
            yield f"{key}.evidence", f"a result of a device failed: {result.verdict.reason}"
    for verdict in entry.verdicts:
        if isinstance(verdict, FailedEntry):
            yield f"{key}.result", f"it failed {verdict.check}: {verdict.reason}"
    grade = _grade(entry, sent)
    if _ORDER.index(grade) < _ORDER.index(rule.evidence):
        yield f"{key}.evidence", f"{rule.evidence} is asked, {grade} is what there is"
    yield from _checks(key, rule, [*manifest.verdicts, *entry.verdicts], sent)


def _checks(key: str, rule: TargetRule, verdicts: Sequence[VerdictEntry], sent: Sequence[Judged]) -> Broken:
    for check in rule.checks:
        told = [v for v in verdicts if v.check == check]
        if check == CHECK and any(isinstance(r.verdict, Passed) and r.signer is not None for r in sent):
            continue
        if not told or not all(isinstance(v, PassedEntry) for v in told):
            words = ", ".join(dict.fromkeys(v.result for v in told)) or "nowhere to be found"
            yield f"{key}.checks", f"{check} is {words}"


def _grade(entry: TargetEntry, sent: Sequence[Judged]) -> Evidence:
    """The strongest grade that a passed run of the artifact has, here or on a device that the policy trusts."""
    told = [v.evidence for v in entry.verdicts if v.check == "lowering" and isinstance(v, PassedEntry)]
    told += [r.verdict.evidence for r in sent if r.signer is not None and isinstance(r.verdict, Passed)]
    if not told and any(isinstance(v, PassedEntry) and v.check in ("weights", "placement") for v in entry.verdicts):
        told = [Evidence.STRUCTURAL]
    return max(told, key=_ORDER.index, default=Evidence.NOT_RUN)


def _allows(rule: SourceRule, source: SourceEntry) -> bool:
    if rule.hub is not None and not (source.kind == "hub" and _matches(rule.hub, source.location)):
        return False
    if rule.revision is not None and source.revision != rule.revision:
        return False
    listed = [(f.name, f.sha256) for f in source.files]
    return all((name, digest) in listed for name, digest in (rule.files or {}).items())


def _matches(pattern: str, name: str) -> bool:
    # A star stays within its part: "BAAI/*" is not "BAAI/x/y", and "*" is no owner's model.
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(fnmatchcase(p, w) for p, w in zip(parts, wanted, strict=True))


def _age(limit: float, created: str, now: datetime) -> Broken:
    try:
        made = datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        yield "max_age_days", f"{created!r} is not a time"
        return
    if made > now + _CLOCKS:
        yield "max_age_days", f"it was made in the future, at {created}"
    elif now - made > timedelta(days=limit):
        yield "max_age_days", f"it was made at {created}, more than {limit:g} days ago"


def _within(version: str, window: str) -> bool:
    try:
        return SpecifierSet(window).contains(version, prereleases=True)
    except InvalidVersion:
        return False
