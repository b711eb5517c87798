"""provenance.intoto.json: how the bundle was made, as an in-toto statement with SLSA's provenance predicate.

Statement: https://in-toto.io/Statement/v1; predicate: https://slsa.dev/provenance/v1. The statement is not signed by
itself: `planish sign` signs every file of the bundle, and so this one.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Any

from planish.bundle.manifest import REPORT, Manifest
from planish.bundle.sbom import package_purl, purl
from planish.bundle.sources import role
from planish_passes.errors import PlanishError

PROVENANCE = "provenance.intoto.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
_HOME = "https://github.com/planish/planish/blob/main/docs/trust.md"
BUILD_TYPE = f"{_HOME}#compile-v1"
UNATTESTED = f"{_HOME}#builder-unattested"  # a machine of which nothing is known but what the signer says
BUILDER = "PLANISH_BUILDER_ID"  # environment variable: the URI of the build platform
Json = dict[str, Any]


def builder() -> str:
    """URI of the build platform, as the environment names it.

    Raises:
        PlanishError: the variable holds no URI.
    """
    told = os.environ.get(BUILDER) or UNATTESTED
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+", told) is None:
        hint = "give one such as https://github.com/OWNER/REPOSITORY/.github/workflows/build.yml, or unset it"
        raise PlanishError(f"{told!r} is no URI.", f"environment variable {BUILDER}", hint)
    return told


def provenance(manifest: Manifest, builder_id: str) -> Json:
    """The statement, as JSON values. Its subjects are the files that the manifest lists.

    Args:
        manifest: of the bundle, before this file is in it.
        builder_id: URI of the build platform.
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": path, "digest": {"sha256": entry.sha256}} for path, entry in manifest.files.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "request": manifest.request,
                    "recipe": manifest.recipe.model_dump(mode="json"),
                    "task": manifest.task,
                },
                "internalParameters": {"python": manifest.tools.python, "platform": manifest.tools.platform},
                "resolvedDependencies": [*_source(manifest), *_packages(manifest)],
            },
            "runDetails": {
                "builder": {"id": builder_id, "version": {"planish": manifest.planish}},
                "metadata": {"planish_result": manifest.result, "planish_verdicts": _verdicts(manifest)},
                "byproducts": [{"name": REPORT, "digest": {"sha256": manifest.files[REPORT].sha256}}],
            },
        },
    }


def _source(manifest: Manifest) -> list[Json]:
    source, found = manifest.source, []
    if source.kind == "hub":
        whole: Json = {"name": source.location, "annotations": {"role": "model"}}
        if uri := purl(source):
            whole["uri"] = uri
        if source.revision:
            whole["digest"] = {"gitCommit": source.revision}
        found.append(whole)
    for file in source.files:
        found.append(
            {
                "name": f"{source.location}/{file.name}",
                "digest": {"sha256": file.sha256},
                "annotations": {"role": role(PurePosixPath(file.name)), "bytes": file.bytes},
            }
        )
    return found


def _packages(manifest: Manifest) -> list[Json]:
    packages = {"planish": manifest.planish, **manifest.tools.packages}
    named = {name: package_purl(name, version) for name, version in packages.items()}
    return [{"name": name, "uri": uri} for name, uri in named.items() if uri is not None]


def _verdicts(manifest: Manifest) -> list[Json]:
    everything = {"program": manifest.verdicts, **{n: t.verdicts for n, t in manifest.targets.items()}}
    return [{"target": name, **v.model_dump(mode="json")} for name, told in everything.items() for v in told]
