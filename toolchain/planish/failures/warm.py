"""What each try of `attempt` needs, imported once in the process that they are forks of; SDKs keep silent."""

from __future__ import annotations

from planish_targets.quiet import quiet

with quiet():
    import planish.build
    import planish.failures.attempt  # noqa: F401
