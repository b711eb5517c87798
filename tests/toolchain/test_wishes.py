"""What a request asks of the form of artifacts: keys, flags, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from support import FAMILIES, random_model

from planish import build
from planish.cli.options import whole
from planish.compiled import Silent
from planish.request import Request
from planish.verdict import Passed
from planish.wishes import adapted, friendly, recipe_of, told
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Wishes


def request(**asked: Any) -> Request:
    return Request(**{"model": "x", "targets": ("coreml",), **asked})


def test_lengths_are_one_number_or_several_in_order() -> None:
    assert request().lengths == ()
    assert request(sequence_length=64).lengths == (64,)
    assert request(sequence_length=[128, 64, 64]).lengths == (64, 128)
    assert request(sequence_length=[64]).sequence_length == 64
    for wrong in (0, [], [0, 4], "many"):
        with pytest.raises(ValidationError):
            request(sequence_length=wrong)


def test_lengths_on_the_command_line() -> None:
    assert whole(None, "--x") is None
    assert whole("64", "--x") == 64
    assert whole("64,128", "--x") == (64, 128)
    with pytest.raises(typer.BadParameter, match="N,N"):
        whole("64,many", "--x")


def test_targets_that_can_choose_get_the_wishes() -> None:
    targets = (registry.find("coreml"), registry.find("onnxruntime"))
    core, other = adapted(targets, request(minimum_ios=17, sequence_length=[8, 16]))
    assert core.wishes == Wishes(17, False, (8, 16))  # type: ignore[attr-defined]
    assert other is targets[1]
    still = adapted(targets, request(ane=True))[0]
    assert still.wishes.ane  # type: ignore[attr-defined]
    assert not still.capabilities.ranged
    with pytest.raises(PlanishError, match="flexible shapes"):
        adapted(targets, request(ane=True, sequence_length=[8, 16]))
    assert adapted(targets, request(sequence_length=8)) == targets
    for asked, flag in (({"minimum_ios": 16}, "--minimum-ios"), ({"ane": True}, "--ane")):
        with pytest.raises(PlanishError, match=flag):
            adapted(targets[1:], request(**asked))


def test_palettes_take_the_place_of_int4_where_all_targets_have_them() -> None:
    asked = request(ane=True, recipe="int4")
    assert friendly(asked).recipe == "lut4"
    assert friendly(friendly(asked)) == friendly(asked)
    palette = recipe_of(friendly(asked)).palette
    assert palette is not None
    assert (palette.bits, palette.group) == (4, 32)
    assert "lut4" in told(friendly(asked))[0]
    shared = request(ane=True, recipe="int4", targets=("coreml", "onnxruntime", "directml"))
    assert friendly(shared) == shared
    assert told(shared) == (
        "--ane: int4 stays int4, because onnxruntime, directml shares the weights and has no palettes",
    )
    for other in (request(recipe="int4"), request(ane=True, recipe="int8"), request(recipe="lut4")):
        assert friendly(other) == other
        assert told(other) == ()
    group = recipe_of(request(recipe="lut4")).palette
    assert group is not None
    assert group.group == 16


def compiled(tmp_path: Path, target: str, **asked: Any) -> Any:
    if not (tmp_path / "model").exists():
        random_model(FAMILIES["bert"]()).save_pretrained(tmp_path / "model")
    given = Request(model=str(tmp_path / "model"), targets=(target,), task="feature-extraction", **asked)
    return build.compile_model(given, Silent(), tmp_path / f"work-{len(asked)}")


@pytest.mark.parametrize("asked", [{"sequence_length": (8, 24)}, {"dynamic": True}], ids=["named", "range"])
def test_each_length_of_a_package_is_checked(asked: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    result = compiled(tmp_path, "coreml", **asked)
    assert not result.failed, result.failed
    (made,) = result.targets
    lowering = next(v for v in made.verdicts if v.check == "lowering")
    assert isinstance(lowering, Passed)
    lengths = {t["input_ids"].shape for t in made.golden_inputs.values()}
    assert lengths == ({(1, 8), (1, 24)} if "sequence_length" in asked else lengths)
    assert len(lengths) > 1
    assert all(shape[0] == 1 for shape in lengths)
    assert made.axes == {"sequence": (2, 512)}


def test_targets_of_one_fixed_length_say_so(tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="one sequence length") as caught:
        compiled(tmp_path, "executorch", sequence_length=(8, 24), verify=False)
    assert "--sequence-length 8,24" in caught.value.where
