"""Loading a request: everything wrong at once, with lines; flags win; nothing ends in a traceback."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.request import Gates, Request
from planish.request_checks import RequestError, installed_names
from planish.request_file import load_request
from planish.request_toml import key_lines
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Capabilities

NAMES = ("coreml", "directml", "executorch", "onnxruntime", "reference")


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {n: SimpleNamespace(capabilities=Capabilities(frozenset(), default=n != "reference")) for n in NAMES}
    monkeypatch.setattr(registry, "targets", lambda: found)


def load(text: str, at: Path, **flags: Any) -> Request:
    file = at / "planish.toml"
    file.write_text(text, "utf-8")
    return load_request(file, flags)


def problems(text: str, at: Path, **flags: Any) -> list[tuple[str, str, str]]:
    """(line or flag, what, hint) of each."""
    with pytest.raises(RequestError) as caught:
        load(text, at, **flags)
    return [(p.where.rpartition(":")[2], p.what, p.hint) for p in caught.value.problems]


def test_all_at_once_with_lines(tmp_path: Path) -> None:
    text = """# a request
model = "m"
treads = 4
targets = [
  "onnxruntime",
  "coremll",  # ] not the end
]
recipe = "int9"
threads = "four"

[gates]
cosin = 0.9
cosine = 3
[runner]
directm = "ssh"
"""
    assert problems(text, tmp_path, timeout=-1) == [
        ("--timeout", "timeout should be greater than 0, not -1", "it is the seconds until a runner is stopped"),
        ("3", "unknown key 'treads'", "did you mean 'threads'?"),
        ("4", "unknown target 'coremll'", "did you mean 'coreml'?"),
        ("8", "unknown recipe 'int9'", "did you mean 'int8'?"),
        ("9", "threads should be a valid integer, not 'four'", "it is the threads of the runtimes while verifying"),
        ("12", "unknown key 'gates.cosin'", "did you mean 'cosine'?"),
        (
            "13",
            "gates.cosine should be less than or equal to 1, not 3",
            "it is the smallest cosine similarity to the original model",
        ),
        ("15", "runner for the unknown target 'directm'", "did you mean 'directml'?"),
    ]


def test_message_lists_every_problem(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        load('recipe = "int9"\nx = 1\n', tmp_path)
    assert str(caught.value).count("planish.toml") == 4  # three problems (no model, too) and the file itself
    with pytest.raises(RequestError) as one:
        load('model = "m"\nrecipe = "int9"\n', tmp_path)
    assert (one.value.what, one.value.hint) == ("unknown recipe 'int9'", "did you mean 'int8'?")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('model = "m"\n\nrecipe = int8\n', "3", "not valid TOML"),
        ('model = "m"\nmodel = "n"\n', "2", "not valid TOML"),
        ('model = "m', "1", "not valid TOML"),
        ('model = "m"\ntargets = []\n', "2", "targets is an empty list"),
        ('model = "m"\ntargets = "coreml"\n', "2", "targets should be a list, not 'coreml'"),
        ('model = "m"\n[gates]\n[runner]\ncoreml = 3\n', "4", "runner.coreml should be a valid string, not 3"),
        ('model = "m"\ngates = 3\n', "2", "gates should be a valid dictionary"),
        ('model = "m"\ntimeout = inf\n', "2", "timeout should be"),
        ('model = "m"\ntimeout = nan\n', "2", "timeout should be"),
        ('model = ""\n', "1", "model is empty"),
        ('model = "m"\nrunner.coreml = "ssh \'mac"\n', "2", "words: no closing quotation"),
        ('model = "m"\nrunner.coreml = " "\n', "2", "the command of coreml is empty"),
        ('model = "a\\u0000b"\n', "1", "model holds a NUL character"),
        ('model = "m"\ngates = {cosine = 0.9, cosinus = 1}\n', "2", "unknown key 'gates.cosinus'"),
        ('model = "m"\ngates.cosinus = 1\n', "2", "unknown key 'gates.cosinus'"),
        ('"a.b" = 1\nmodel = "m"\n', "1", "unknown key 'a.b'"),
        ("recipe = 'int8'\n", "toml", "no model is given"),
    ],
)
def test_wrong(tmp_path: Path, text: str, line: str, what: str) -> None:
    where, told, _ = problems(text, tmp_path)[0]
    assert what in told
    assert where.endswith(line)


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    request = load('model = "there"\noutput = "out/x.planish"\n', tmp_path)
    assert (request.model, request.output) == (str(tmp_path / "there"), tmp_path / "out" / "x.planish")
    assert load('model = "./gone"\n', tmp_path).model == str(tmp_path / "gone")
    assert load('model = "BAAI/bge-small"\n', tmp_path).model == "BAAI/bge-small"
    assert load('model = "there"\n', tmp_path, model="other").model == "other"


def test_flags_win_and_tables_merge(tmp_path: Path) -> None:
    text = 'model = "m"\ntargets = ["coreml"]\n[gates]\ncosine = 0.5\nplacement = 1\n[runner]\ncoreml = "a"\n'
    request = load(text, tmp_path, targets=("directml", "directml"), gates={"cosine": 0.9}, runner={"directml": "b"})
    assert request.targets == ("directml",)
    assert request.gates == Gates(cosine=0.9, placement=1)
    assert request.runner == {"coreml": "a", "directml": "b"}


def test_defaults(tmp_path: Path) -> None:
    assert load_request(None, {"model": "m"}) == Request(model="m", targets=installed_names().default)
    assert installed_names().default == NAMES[:4]


def test_every_key_of_the_file(tmp_path: Path) -> None:
    text = """model = "m"
targets = ["coreml"]
recipe = "int8"
group = 64
symmetric = true
rounding = "search"
activations = "none"
bits = 4.5
max_size = "90MB"
context = 512
output = "o"
task = "fill-mask"
revision = "main"
sequence_length = 64
dynamic = false
minimum_ios = 17
ane = true
trust_remote_code = true
logits = "all"
split_weights = true
verify = true
keep_failed = true
loaders = false
threads = 2
timeout = 9
runner = {coreml = "ssh"}
gates = {cosine = 0.9, agreement = 0.9, divergence = 0.1, capture = 0.1, lowering = 8, placement = 0.5}
"""
    request = load(text, tmp_path)
    assert set(tomllib.loads(text)) == set(Request.model_fields)
    assert all(value is not None for value in request.model_dump().values())


@pytest.mark.parametrize("content", [b"\xff\xfe", b"model = '\xe9'", bytes(300_000)])
def test_files_that_are_no_requests(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.toml").write_bytes(content)
    with pytest.raises(PlanishError):
        load_request(tmp_path / "p.toml", {})


@pytest.mark.parametrize("name", [".", "gone.toml", "n" * 300, "a\0b"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanishError, match="cannot be read"):
        load_request(tmp_path / name, {})


def test_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes(b'model = "m"\r\nx = 1\r\n')
    with pytest.raises(RequestError) as caught:
        load_request(tmp_path / "p.toml", {})
    assert caught.value.where.endswith("p.toml:2")


def test_key_lines() -> None:
    text = 'a = """\n[no]\n"""\nb.c = [\n  [1],\n]\n[[t]]\nd = 1\n\n[t.u]\ne = {f = 1}\n[v]\n[[t]]\nd = 2\n# end'
    assert key_lines(text) == {
        (): 1,
        ("a",): 1,
        ("b",): 4,
        ("b", "c"): 4,
        ("t",): 7,
        ("t", "0"): 7,
        ("t", "0", "d"): 8,
        ("t", "0", "u"): 10,
        ("t", "0", "u", "e"): 11,
        ("t", "0", "u", "e", "f"): 11,
        ("v",): 12,
        ("t", "1"): 13,
        ("t", "1", "d"): 14,
    }


KEYS = st.sampled_from([*Request.model_fields, *Gates.model_fields, "treads", "a b", "", "é", "targets.x"])
SCALARS = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.sampled_from(["coreml", "int8", "/", "~", "x" * 300]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and ord(c) < 128 else f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return str(value)


def outcome(file: Path, content: bytes) -> tuple[PlanishError | None, Request | None]:
    """(refusal, None) or (None, request); anything else that is raised fails the test."""
    file.write_bytes(content)
    try:
        return None, load_request(file, {})
    except PlanishError as refusal:
        return refusal, None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.dictionaries(KEYS, VALUES, max_size=5), blank=st.sampled_from(["\n", "\n\n# ]\n"]))
def test_random_requests_never_give_a_traceback(tmp_path: Path, table: dict[str, Any], blank: str) -> None:
    text = blank.join(f"{_toml(k)} = {_toml(v)}" for k, v in table.items())
    assert {path[0] for path in key_lines(text) if path} == set(tomllib.loads(text))
    refusal, request = outcome(tmp_path / "planish.toml", text.encode())
    assert (refusal is None) == (request is not None)
    assert refusal is None or (refusal.what and refusal.where and refusal.hint)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="abmodel=\"[]{}'.,#=\n\r\t 019-:", max_size=60) | st.text(max_size=40))
def test_random_text_never_gives_a_traceback(tmp_path: Path, text: str) -> None:
    refusal, request = outcome(tmp_path / "planish.toml", text.encode("utf-8", "surrogatepass"))
    assert (refusal is None) == (request is not None)


def test_deep_nesting(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not valid TOML"):
        load("model = " + "[" * 5000, tmp_path)
    with pytest.raises(RequestError, match="not valid TOML"):
        load("threads = " + "9" * 5000, tmp_path)
