"""A bug report holds what helps, and nothing of its user."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from planish.failures.folder import files, write_report
from planish.failures.record import Finding, Model, Record
from planish.failures.reduce import Reduced
from planish_passes.errors import PlanishError

HOME = str(Path.home())
CONFIG = {"model_type": "bert", "hidden_size": 8}
RECORD = Record(
    ended="failed",
    began="2026-01-01T00:00:00Z",
    output="/data/acme/secret-model-int8.planish",
    request={
        "model": "/data/acme/secret-model",
        "output": "/data/acme/secret-model-int8.planish",
        "targets": ["coreml"],
        "recipe": "int8",
        "revision": "private-branch",
        "runner": {"coreml": "ssh alice@mac /Users/alice/planish-run"},
    },
    stages=(("source", "/data/acme/secret-model"), ("lower coreml", "")),
    notes=("token hf_abcdefghijklmnop was used", "https://alice:pw@hub/x"),
    findings=(
        Finding(
            target="coreml",
            kind="PlanishError",
            what="no form for erf",
            where=f"{HOME}/x/config.json",
            pass_name="Refuses",
            node="erf",
            op="aten.erf",
            module="encoder.layer.0",
            graph=("> %erf: f32[2] = aten.erf(%x)  # encoder.layer.0",),
            traceback=f'File "{HOME}/.venv/lib/python3.11/site-packages/x/y.py", line 3\n'
            f'File "{sys.prefix}/lib/z.py", line 4\nFile "/opt/alice/w.py", line 5',
        ),
    ),
    model=Model(task="fill-mask", architecture="BertForMaskedLM", config={**CONFIG, "num_hidden_layers": 12}),
    python="3.11",
    platform="Linux x86_64",
    versions={"torch": "2.13.0"},
)
SMALL = Reduced(CONFIG, {"targets": ["coreml"], "verify": False}, 7, True)
PRIVATE = ("acme", "secret", "alice", "private-branch", "hf_abc", "pw@", HOME + "/", sys.prefix + "/", "/opt", "/data")


@pytest.mark.parametrize("small", [SMALL, "it depends on /data/acme/weights"], ids=["reduced", "not"])
def test_nothing_of_the_user(small: Reduced | str) -> None:
    made = files(RECORD, small, {"machine": {"hub": f"{HOME}/hub"}})
    for name, text in made.items():
        assert [word for word in PRIVATE if word in text] == [], name


def test_what_helps() -> None:
    made = files(RECORD, SMALL, {"ok": True})
    assert sorted(made) == ["README.md", "config.json", "doctor.json", "planish.toml", "record.json", "reproduce.py"]
    for part in ("no form for erf", "Refuses", "erf (aten.erf)", "encoder.layer.0", "torch 2.13.0", "7 models", "y.py"):
        assert part in made["README.md"]
    assert json.loads(made["config.json"]) == CONFIG
    compile(made["reproduce.py"], "reproduce.py", "exec")
    assert 'targets = ["coreml"]' in made["planish.toml"]


def test_without_a_smaller_one_it_is_the_models_own_config() -> None:
    made = files(RECORD, "no time", {})
    assert json.loads(made["config.json"])["num_hidden_layers"] == 12
    assert "Not reduced: no time." in made["README.md"]
    assert "reproduce.py" not in made


def test_it_replaces_only_its_own(tmp_path: Path) -> None:
    at = write_report(RECORD, SMALL, {}, tmp_path / "report")
    assert write_report(RECORD, "no time", {}, at) == at
    assert not (at / "reproduce.py").exists()
    (tmp_path / "x.zip").write_text("not one")
    with pytest.raises(PlanishError, match="already a file"):
        write_report(RECORD, SMALL, {}, tmp_path / "x.zip")
