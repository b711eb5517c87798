"""What docs/trust.md shows is what planish reads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from planish.trust.policy import IdentityRule, Policy, SignersRule, SourceRule, TargetRule

TEXT = (Path(__file__).parents[3] / "docs" / "trust.md").read_text()


def test_the_policy_is_valid_and_shows_every_key() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    policy = Policy.model_validate(tomllib.loads(shown))
    assert policy.sources is not None
    assert len(policy.sources) == 2
    for model in (Policy, SignersRule, IdentityRule, SourceRule, TargetRule):
        for key in model.model_fields:
            assert re.search(rf"\b{key}\b", shown), f"{model.__name__}.{key}"


def test_the_statement_of_a_phone_is_the_tested_one() -> None:
    for part in ("DSSEv1 28 application/vnd.in-toto+json", "application/vnd.dev.sigstore.bundle.v0.3+json"):
        assert part in TEXT
    assert len("application/vnd.in-toto+json") == 28
