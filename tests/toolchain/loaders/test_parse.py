"""Sources in every language parse, whatever the bundle's words are. Swift is compiled nowhere; the others are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from shipping import Shipped

from planish.bundle import open_bundle
from planish.loaders import contract as contracts
from planish.loaders.contract import Contract, Labels, Pooling, Target, Tensor, Writing, contract
from planish.loaders.render import LANGUAGES, render

GRAMMARS = {".py": "python", ".hpp": "cpp", ".kt": "kotlin", ".cs": "c_sharp", ".swift": "swift"}
NASTY = 'a"; exit(1); // \\ ${x} \n\r\t */ """ \u202e 🙂 ??/ \u0000 <b> #{y} \\(z)'


def faults(grammar: str, source: bytes) -> list[str]:
    """Lines of what the grammar does not know or misses."""
    tree_sitter = pytest.importorskip("tree_sitter")
    language = pytest.importorskip(f"tree_sitter_{grammar}").language()
    found, open_ = [], [tree_sitter.Parser(tree_sitter.Language(language)).parse(source).root_node]
    while open_:
        node = open_.pop()
        if node.is_error or node.is_missing:
            found.append(f"{node.start_point[0] + 1}: {source.splitlines()[node.start_point[0]].decode()[:100]}")
        open_ += node.children
    return found


def nasty(facts: Contract) -> Contract:
    """The same with words that try to be code."""
    targets = tuple(
        dataclasses.replace(
            t,
            inputs=tuple(dataclasses.replace(p, name=p.name + NASTY) for p in t.inputs),
            outputs=tuple(Tensor(p.name + NASTY, p.dtype, (*p.shape, NASTY)) for p in t.outputs),
        )
        for t in facts.targets
    )
    text = facts.text and dataclasses.replace(facts.text, chat=(NASTY, NASTY))
    return dataclasses.replace(facts, name=NASTY, task=NASTY, targets=targets, text=text, why=(NASTY,))


def core_ml(facts: Contract) -> Contract:
    """With a Core ML target of the same kind."""
    first = facts.targets[0]
    writing = first.writing and Writing((), "position_ids", False, 64, (("decode", 1), ("prefill", 16)), 16)
    more = Target("coreml", "coreml", "targets/coreml", "model.mlpackage", first.inputs, first.outputs, (), writing, 64)
    return dataclasses.replace(facts, targets=(*facts.targets, more))


@pytest.fixture(params=["encoder", "classifier", "writer"])
def facts(request: pytest.FixtureRequest) -> Contract:
    shipped: Shipped = request.getfixturevalue(request.param)
    return core_ml(contract(open_bundle(shipped.bundle)))


VARIANTS: dict[str, Any] = {
    "as it is": lambda facts: facts,
    "nasty": nasty,
    "no tokenizer": lambda facts: dataclasses.replace(facts, text=None, pooling=None, labels=None),
    "cls": lambda facts: dataclasses.replace(facts, pooling=facts.pooling and Pooling("cls", False, False)),
    "max": lambda facts: dataclasses.replace(facts, pooling=facts.pooling and Pooling("max", True, True)),
    "last": lambda facts: dataclasses.replace(facts, pooling=facts.pooling and Pooling("lasttoken", False, True)),
    "several labels": lambda facts: dataclasses.replace(facts, labels=facts.labels and Labels((NASTY, "b"), True)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_file_parses(facts: Contract, language: str, variant: str) -> None:
    made = VARIANTS[variant](facts)
    for names in LANGUAGES[language].values():
        for name in names:
            source = render(language, name, made)
            grammar = GRAMMARS.get("." + name.rsplit(".", 1)[-1])
            assert source.isascii(), name
            if grammar == "python":
                compile(source, name, "exec")
            elif grammar is not None and faults(grammar, source) != []:
                raise AssertionError(f"{name}: {faults(grammar, source)}")


def test_the_grammar_sees_faults() -> None:
    assert faults("swift", b"func f( { let = }") != []
    assert faults("kotlin", b"fun f( { val = }") != []
    assert faults("c_sharp", b"class A { void f( { } }") != []
    assert faults("cpp", b"int f( { return; }") != []


def test_models_that_have_no_calls(encoder: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "modules.json": [{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}, {"type": "x.Dense"}]
    }
    monkeypatch.setattr(contracts, "_json", lambda bundle, name: settings.get(name, {}))
    made = contracts.contract(open_bundle(encoder.bundle))
    assert made.pooling is None
    assert made.why == ("no embed: the model's module Dense is not in the artifact",)
    settings["modules.json"].pop()
    settings["1_Pooling/config.json"] = {"pooling_mode_weightedmean_tokens": True}  # type: ignore[assignment]
    assert "weightedmean" in contracts.contract(open_bundle(encoder.bundle)).why[0]
