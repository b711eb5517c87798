"""A build: what is planned, what is made, and that only what changed is made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matrices
import pytest
from matrices import FACTS, TEXT, Bench, contents, with_request

from planish.matrix.cache import Cache
from planish.matrix.compile import Compiled
from planish.matrix.file import Job, Matrix
from planish.matrix.hashes import Hashes
from planish.matrix.plan import plan
from planish.matrix.run import Build, Outcome
from planish_passes.errors import PlanishError


@pytest.fixture
def bench(tmp_path: Path, model: Path, matrix: Callable[[str], Matrix]) -> Bench:
    return Bench(tmp_path, matrix)


def test_only_what_changed_is_made_again(bench: Bench) -> None:
    assert bench.statuses() == ["built"] * 4
    assert bench.compiles.made == ["minilm-float", "minilm-int8", "other-float", "other-int8"]
    assert ("minilm-int8", "compile: not built here before") in bench.said
    assert bench.statuses() == ["up to date"] * 4
    before = {name: contents(bench.root / "dist" / f"{name}.planish") for name in ("minilm-float", "minilm-int8")}
    bench.text = TEXT.replace("0.9", "0.8")
    outcomes = bench.build()
    assert [o.status for o in outcomes] == ["up to date", "built"] * 2
    assert outcomes[1].step.reasons == ("gates.cosine: 0.9 -> 0.8",)
    assert bench.compiles.made == ["minilm-int8", "other-int8"]
    bench.text = TEXT  # back again: nothing is compiled
    assert bench.statuses() == ["up to date", "from cache"] * 2
    assert bench.compiles.made == []
    assert {name: contents(bench.root / "dist" / f"{name}.planish") for name in before} == before


def test_a_changed_model_makes_all_of_its_bundles_again(bench: Bench, model: Path) -> None:
    bench.build()
    (model / "tokenizer.json").write_text("[1]")
    outcomes = bench.build()
    assert {o.status for o in outcomes} == {"built"}
    assert outcomes[0].step.reasons == ("model file tokenizer.json changed",)


def test_another_package_touches_only_its_targets(bench: Bench) -> None:
    bench.text = TEXT.replace('["onnxruntime"]', '["onnxruntime", "coreml"]\nseparate_targets = true')
    bench.build()
    bench.facts = replace(FACTS, packages={**FACTS.packages, "coreml": {"sdk-of-coreml": "2"}})
    assert bench.statuses() == ["up to date", "built"] * 4


def test_a_cache_without_the_bundles(bench: Bench) -> None:
    """A fresh checkout with a cache, and a checkout with an empty cache."""
    bench.build()
    bundles = bench.root / "dist"
    before = contents(bundles / "minilm-int8.planish")
    shutil.rmtree(bundles)
    assert bench.statuses() == ["from cache"] * 4
    assert contents(bundles / "minilm-int8.planish") == before
    shutil.rmtree(bench.root / "cache")
    assert bench.statuses() == ["up to date"] * 4
    shutil.rmtree(bundles / ".planish-build")
    assert bench.statuses() == ["built"] * 4
    assert bench.build(force=True)[0].step.reasons == ("--force",)
    assert len(bench.compiles.made) == 4


@pytest.mark.parametrize("how", ["changed", "gone", "all gone"])
def test_a_bundle_that_somebody_changed_is_put_back(bench: Bench, how: str) -> None:
    bench.build()
    at = bench.root / "dist" / "minilm-int8.planish"
    before, path = contents(at), at / "targets" / "onnxruntime" / "model.onnx"
    if how == "changed":
        path.write_bytes(path.read_bytes().replace(b"int8", b"int9"))
        os.utime(path, (1, 1))
    elif how == "gone":
        path.unlink()
    else:
        shutil.rmtree(at)
    outcome = bench.build()[1]
    told = {"changed": "is not as it was written", "gone": "is gone", "all gone": "the bundle is gone"}[how]
    assert told in outcome.step.reasons[0]
    assert (outcome.status, contents(at)) == ("from cache", before)


def test_what_is_added_to_a_bundle_stays(bench: Bench) -> None:
    bench.build()
    (bench.root / "dist" / "minilm-int8.planish" / "model.sig").write_text("signed")
    for path in (bench.root / "dist").rglob("model.onnx"):
        os.utime(path)  # copied with other dates, as a checkout does
    assert bench.statuses() == ["up to date"] * 4


def test_a_damaged_cache_is_named_and_the_bundle_built(bench: Bench) -> None:
    bench.build()
    shutil.rmtree(bench.root / "dist")
    entry = bench.plan()[1].entry
    assert entry is not None
    broken = bench.cache.local.object(entry.files["targets/onnxruntime/model.onnx"].sha256)
    broken.write_bytes(b"rubbish")
    outcomes = bench.build()
    assert [o.status for o in outcomes] == ["from cache", "built", "from cache", "from cache"]
    assert broken.name in bench.notes[0]
    assert outcomes[1].notes == ("the cache could not give it back",)
    shutil.rmtree(bench.root / "dist")
    assert bench.statuses() == ["from cache"] * 4


def test_failures_leave_the_others_alone(bench: Bench) -> None:
    bench.build()
    kept = contents(bench.root / "dist" / "minilm-float.planish")
    bench.text = TEXT + "threads = 3\n" + '[[model]]\nname = "gone"\nmodel = "./gone"\n'
    bench.text = bench.text.replace("output", "timeout = 5\noutput")
    gate = {"target": "onnxruntime", "check": "quality", "reason": "too far"}
    bench.compiles.ends = {
        "minilm-float": Compiled(None, PlanishError("no", "here", "mend"), 1.0),
        "minilm-int8": Compiled({"ok": False, "failed": [gate], "targets": []}, None, 1.0),
        "other-float": OSError(28, "No space left on device", "/full"),
    }
    outcomes = bench.build(jobs=3)
    assert [o.status for o in outcomes] == ["failed", "gate failed", "failed", "built", "failed", "failed"]
    assert outcomes[2].error is not None
    assert (outcomes[2].error.what, outcomes[2].error.where) == ("No space left on device.", "/full")
    assert outcomes[4].error is not None
    assert "gone" in outcomes[4].error.what
    assert contents(bench.root / "dist" / "minilm-float.planish") == kept
    # What failed is not up to date, and not cached.
    again = bench.build()
    assert [o.status for o in again[:4]] == ["failed", "gate failed", "failed", "up to date"]
    assert len(bench.compiles.made) == 3


def test_a_model_that_changes_while_it_is_compiled_is_not_kept(bench: Bench, model: Path) -> None:
    bench.compiles.before = lambda job: (model / "config.json").write_text(f'{{"for": "{job.name}"}}') and None
    outcomes = bench.build()
    assert "model file config.json changed" in outcomes[0].notes[0]
    assert bench.cache.local.usage()[0] == 0


def test_a_compile_that_read_other_files_than_the_key_is_not_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model was changed and changed back: hashes before and after agree, what was read does not."""
    bench.text = TEXT.split("[[model]]\nname")[0]
    wrong = [{"name": "config.json", "sha256": "0" * 64}]
    monkeypatch.setattr(matrices, "_files", lambda folder: wrong)
    outcomes = bench.build()
    assert [o.notes[0].rpartition(": ")[2] for o in outcomes] == ["model file config.json"] * 2
    assert bench.cache.local.usage()[0] == 0


def test_an_interrupt_stops_what_runs_and_keeps_what_is_finished(bench: Bench) -> None:
    steps = bench.plan()

    def interrupt(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    build = Build(FACTS, bench.hashes, bench.cache, bench.compiles, bench, 1, False, interrupt)
    with pytest.raises(KeyboardInterrupt):
        build.run(steps)
    assert bench.compiles.stopped.is_set()
    assert bench.statuses()[0] == "up to date"


def test_what_the_cache_keeps_of_a_compile_names_no_place(bench: Bench) -> None:
    bench.build()
    assert str(bench.root) not in "".join(p.read_text() for p in (bench.root / "cache" / "entries").glob("*.json"))


def test_a_record_that_cannot_be_read_costs_a_look_into_the_cache(bench: Bench) -> None:
    bench.build()
    for damage in (b"", b"{}", b'{"files": 3}', b"[1]"):
        (bench.root / "dist" / ".planish-build" / "minilm-int8.json").write_bytes(damage)
        assert bench.statuses()[1] == "from cache"


def test_a_model_that_is_not_there(bench: Bench, job: Job) -> None:
    step = plan(with_request(job, model="./nowhere"), FACTS, Hashes(bench.root / "h"), Cache(None, print))
    assert (step.action, step.inputs) == ("impossible", None)
