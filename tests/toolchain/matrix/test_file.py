"""planish.toml with several bundles: what each of them is, and everything wrong at once, with lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from planish.matrix.file import Matrix, load_matrix
from planish.request_checks import Names, RequestError
from planish.request_file import load_request
from planish_passes.errors import PlanishError

Load = Callable[[str], Matrix]


def test_one_model_is_a_matrix_of_one(matrix: Load, tmp_path: Path) -> None:
    text = 'model = "owner/some-model"\nrecipe = "int8"\ncache = "s3://team/cache"\n'
    read = matrix(text)
    (job,) = read.jobs
    assert (job.name, job.output) == ("some-model-int8", tmp_path / "some-model-int8.planish")
    assert job.request.targets == ("coreml", "onnxruntime")
    assert read.cache == "s3://team/cache"
    assert load_request(tmp_path / "planish.toml", {}).recipe == "int8"  # compile takes the same file
    assert matrix('model = "m"\noutput = "x/out.planish"').jobs[0].output == tmp_path / "x" / "out.planish"


def test_models_by_recipes_with_what_each_changes(matrix: Load, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    jobs = matrix("""
recipes = ["float", "small"]
targets = ["onnxruntime", "coreml"]
output = "dist"
threads = 2
[gates]
cosine = 0.9
[runner]
directml = "ssh winbox planish-run"
coreml = "ssh mac planish-run"
[recipe.small]
recipe = "int4"
bits = 5
[recipe.small.gates]
cosine = 0.8
lowering = 3
[[model]]
model = "here"
[[model]]
name = "llm"
model = "owner/llm"
recipes = ["small"]
targets = ["executorch:vulkan"]
gates = {agreement = 0.5}
[model.recipe.small]
bits = 6
[[model]]
model = "third"
recipe = "int8"
""").jobs
    assert [job.name for job in jobs] == ["here-float", "here-small", "llm-small", "third-int8"]
    assert [job.request.recipe for job in jobs] == ["float", "int4", "int4", "int8"]
    assert [job.request.bits for job in jobs] == [None, 5, 6, None]
    assert [job.request.gates.cosine for job in jobs] == [0.9, 0.8, 0.8, 0.9]
    assert (jobs[2].request.gates.agreement, jobs[2].request.gates.lowering) == (0.5, 3)
    assert {job.request.threads for job in jobs} == {2}
    assert jobs[0].request.model == str(tmp_path / "here")
    assert jobs[2].output == tmp_path / "dist" / "llm-small.planish"
    assert jobs[2].request.targets == ("executorch:vulkan",)
    # Commands for other targets are not part of a bundle's request.
    assert (jobs[0].request.runner, jobs[2].request.runner) == ({"coreml": "ssh mac planish-run"}, {})


def test_a_bundle_per_target(matrix: Load) -> None:
    jobs = matrix('model = "m"\nseparate_targets = true\ntargets = ["coreml", "executorch:vulkan"]').jobs
    assert [(job.name, job.request.targets) for job in jobs] == [
        ("m-float-coreml", ("coreml",)),
        ("m-float-executorch-vulkan", ("executorch:vulkan",)),
    ]


def test_recipes_are_those_that_have_tables(matrix: Load) -> None:
    jobs = matrix('[recipe.int8]\n[recipe.int4]\nbits = 5\n[[model]]\nmodel = "m"').jobs
    assert [job.name for job in jobs] == ["m-int8", "m-int4"]


WRONG = """recipes = ["float", "int9"]
treads = 4
[gates]
cosin = 1
[recipe.float]
bits = 99
model = "x"
[[model]]
model = "a"
targets = ["coremll"]
[[model]]
name = "b/c"
model = "b"
gates.cosine = 7
[model.recipe.float]
threads = "four"
[[model]]
name = "nothing"
"""


def test_everything_wrong_with_its_line(matrix: Load) -> None:
    def told(text: str) -> list[tuple[int, str]]:
        with pytest.raises(RequestError) as caught:
            matrix(text)
        return [(int(p.where.rpartition(":")[2]), p.what) for p in caught.value.problems]

    # First what the tables are, then what they say.
    assert told(WRONG) == [
        (2, "unknown key 'treads'"),
        (4, "unknown key 'gates.cosin'"),
        (7, "unknown key 'recipe.float.model'"),
        (17, "this [[model]] names no model"),
    ]
    mended = WRONG.replace("treads = 4", "").replace("cosin = 1", "").replace('model = "x"', "")
    assert told(mended.replace('name = "nothing"', 'model = "d"')) == [
        (1, "unknown recipe 'int9'"),
        (6, "bits should be less than or equal to 8, not 99"),
        (10, "unknown target 'coremll'"),
        (14, "gates.cosine should be less than or equal to 1, not 7"),
        (16, "threads should be a valid integer, not 'four'"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('[[model]]\nmodel = "a/m"\n[[model]]\nmodel = "b/m"\n', 1, "two bundles would be called m-float"),
        ('[[model]]\nmodel = "m"\nname = "a b"\n', 3, "'a b' cannot be the name of a bundle"),
        ("model = []\n", 1, "model is an empty list"),
        ("model = [3]\n", 1, "model 1 is no table"),
        ('recipes = "int8"\nmodel = "m"\n', 1, "recipes should be a list of names"),
        ('recipes = []\nmodel = "m"\n', 1, "recipes should be a list of names"),
        ('model = "m"\n[recipe]\nint8 = 3\n', 3, "recipe.int8 is no table"),
        ('model = "m"\nseparate_targets = 1\n', 2, "separate_targets should be true or false"),
        ('cache = 3\nmodel = "m"\n', 1, "cache should be a text"),
        ('recipes = ["int8"]\n', 1, "no model is given"),
        ('[[model]]\nmodel = "m"\nname = 3\n', 3, "name should be a text"),
    ],
)
def test_wrong(matrix: Load, text: str, line: int, what: str) -> None:
    with pytest.raises(RequestError) as caught:
        matrix(text)
    problem = caught.value.problems[0]
    assert problem.what == what
    assert problem.where.endswith((f":{line}", "planish.toml") if "no model" in what else f":{line}")
    assert problem.hint


def test_compile_says_who_takes_this_form(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[model]]\nmodel = "m"\n')
    with pytest.raises(PlanishError, match="several bundles") as caught:
        load_request(file, {})
    assert "planish build" in caught.value.hint


def test_the_example_is_valid() -> None:
    names = Names(("onnxruntime", "coreml", "executorch", "directml"), (), ("float", "int8", "int4"))
    for file in (Path(__file__).parents[3] / "examples").rglob("planish*.toml"):
        if "model" in file.read_text().split("\n[", 1)[0] or "[[model]]" in file.read_text():
            assert load_matrix(file, names).jobs
