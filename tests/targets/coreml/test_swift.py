"""The Swift package of examples/ios: it parses, and reads what bundles have. Nothing compiles it here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from decoders import fused

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_targets.contract import Artifact, Recipe, Wishes
from planish_targets.coreml import TARGET

pytest.importorskip("coremltools")
tree_sitter = pytest.importorskip("tree_sitter")
tree_sitter_swift = pytest.importorskip("tree_sitter_swift")

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "ios"
SOURCES = sorted(EXAMPLE.rglob("*.swift"))


def parsed(source: bytes) -> tree_sitter.Node:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language())).parse(source).root_node


def walk(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def faults(source: bytes) -> list[int]:
    """Lines of what the grammar does not know or misses."""
    return [n.start_point[0] + 1 for n in walk(parsed(source)) if n.is_error or n.is_missing]


def text(node: tree_sitter.Node) -> str:
    return (node.text or b"").decode()


def properties(struct: str) -> set[str]:
    """Names of the stored properties of a struct of BundleFolder.swift."""
    root = parsed((EXAMPLE / "Sources/PlanishModel/BundleFolder.swift").read_bytes())
    (found,) = (
        n
        for n in walk(root)
        if n.type == "class_declaration" and (name := n.child_by_field_name("name")) and text(name) == struct
    )
    body = found.child_by_field_name("body")
    assert body is not None
    declared = [n.child_by_field_name("name") for n in body.children if n.type == "property_declaration"]
    return {text(name).strip() for name in declared if name is not None}


def test_every_source_parses() -> None:
    assert len(SOURCES) == 7
    assert {str(p.relative_to(EXAMPLE)): faults(p.read_bytes()) for p in SOURCES if faults(p.read_bytes())} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_a_missing_bracket_is_seen(path: Path) -> None:
    source = path.read_bytes()
    at = max(source.rfind(b"}"), source.rfind(b")"))
    assert faults(source[:at] + source[at + 1 :])


def test_the_manifest_has_what_is_read_of_it() -> None:
    schema = json.loads((ROOT / "docs" / "bundle-manifest.schema.json").read_text())
    assert properties("Manifest") == {"version", "name", "task", "tokenizer", "targets"}
    assert properties("Manifest") <= set(schema["properties"])
    for struct in ("TargetEntry", "ArtifactEntry"):
        assert properties(struct)
        assert properties(struct) <= set(schema["$defs"][struct]["properties"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    full = run_passes(fused("llama").program, pipeline.yardstick(torch.float16, "none")).program
    order = (*pipeline.resident(80), *pipeline.for_target(TARGET.capabilities.keeps, None))
    target = TARGET.adapted(Wishes(ane=True))
    return target.lower(run_passes(full, order).program, tmp_path_factory.mktemp("llama"), Recipe("float"))


def test_packages_have_the_options_and_inputs_that_are_read(llama: Artifact) -> None:
    assert properties("Options") == {"inputs", "outputs", "functions", "context", "logits", "masks"}
    assert properties("Options") <= set(llama.options)
    source = (EXAMPLE / "Sources/PlanishModel/TokenLoop.swift").read_text()
    assert llama.options["inputs"] == ["input_ids", "position_ids"]
    assert all(f'"{name}": feature(' in source for name in llama.options["inputs"])
    assert llama.options["outputs"] == ["logits"]
    assert 'featureValue(for: "logits")' in source


def test_the_asset_pack_names_what_the_bundle_folder_opens() -> None:
    pack = json.loads((EXAMPLE / "AssetPack" / "Manifest.json").read_text())
    assert set(pack) == {"assetPackID", "downloadPolicy", "fileSelectors", "platforms"}
    paths = [path for selector in pack["fileSelectors"] for path in selector.values()]
    (folder,) = {path.partition("/")[0] for path in paths}
    assert {path.removeprefix(f"{folder}/") for path in paths} == {"manifest.json", "targets/coreml", "tokenizer"}
    readme = (EXAMPLE / "README.md").read_text()
    assert f'ModelPack.bundle("{pack["assetPackID"]}", folder: "{folder}")' in readme
    assert "never compiled" in readme
