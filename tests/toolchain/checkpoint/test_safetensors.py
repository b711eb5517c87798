"""The header is checked before a byte of data is used; each planted defect is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from planish.checkpoint import SafetensorsCheckpoint
from planish_passes.errors import PlanishError

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "ids": torch.arange(5),
    "flag": torch.tensor(True),
    "empty": torch.zeros(0, 4),
    "small": torch.arange(3, dtype=torch.uint8),
    "eight": torch.ones(4).to(torch.float8_e4m3fn),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    return path


def write(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: tuple[int, ...], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_equals_the_official_reader(file: Path) -> None:
    checkpoint, expected = SafetensorsCheckpoint([file]), load_file(file)
    assert set(checkpoint.keys()) == set(expected)
    for name, tensor in expected.items():
        found = checkpoint.read(name)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert checkpoint.spec(name).dtype == tensor.dtype
        assert torch.equal(found.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name


def test_pages_come_back_after_release(file: Path) -> None:
    checkpoint = SafetensorsCheckpoint([file])
    view = checkpoint.read("weight")
    checkpoint.release("weight")
    assert torch.equal(view, TENSORS["weight"])


def test_unaligned_tensor_is_copied(tmp_path: Path) -> None:
    data = b"\x07" + torch.arange(2, dtype=torch.float32).numpy().tobytes()
    header = {"a": entry(0, 1, (1,), "U8"), "b": entry(1, 9, (2,))}
    checkpoint = SafetensorsCheckpoint([write(tmp_path / "f.safetensors", header, data)])
    assert checkpoint.read("b").tolist() == [0.0, 1.0]


def test_truncated_data_names_the_tensor(file: Path) -> None:
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    last = max(header, key=lambda name: header[name]["data_offsets"])
    file.write_bytes(whole[:-1])
    with pytest.raises(
        PlanishError, match=rf"truncated: 1 of {len(whole)} bytes are missing, from the tensor {last} on"
    ) as caught:
        SafetensorsCheckpoint([file])
    assert str(file) in caught.value.where


@pytest.mark.parametrize("length", [0, 5, 8, 50])
def test_truncated_header(length: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(PlanishError, match=r"truncated inside its header|is empty") as caught:
        SafetensorsCheckpoint([file])
    assert str(file) in caught.value.where


def test_git_lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(PlanishError, match=r"Git LFS pointer") as caught:
        SafetensorsCheckpoint([file])
    assert "git lfs pull" in caught.value.hint


def test_foreign_file(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" + b"\xff" * 100)
    with pytest.raises(PlanishError, match=r"not a safetensors file"):
        SafetensorsCheckpoint([file])


DEFECTS: dict[str, tuple[Any, int, str]] = {
    "gap": ({"a": entry(0, 4, (1,)), "b": entry(8, 12, (1,))}, 12, "b leaves a gap"),
    "overlap": ({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, 12, "b overlaps"),
    "size": ({"a": entry(0, 8, (3,))}, 8, r"a claims bytes 0\.\.8, but F32 \[3\] needs 12"),
    "negative": ({"a": entry(-4, 0, (1,))}, 4, "a claims bytes"),
    "dtype": ({"a": entry(0, 4, (1,), "F4")}, 4, "a has the unknown dtype F4"),
    "trailing": ({"a": entry(0, 4, (1,))}, 9, "5 bytes follow"),
    "entry": ({"a": {"dtype": "F32"}}, 0, "entry of a is not readable"),
    "json": (b"{nothing", 0, "header is not readable"),
    "twice": (b'{"a": {}, "a": {}}', 0, "a appears twice"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_damaged_header(defect: str, tmp_path: Path) -> None:
    header, size, message = DEFECTS[defect]
    path = write(tmp_path / "f.safetensors", header, bytes(size))
    with pytest.raises(PlanishError, match=message) as caught:
        SafetensorsCheckpoint([path])
    assert caught.value.where == str(path)


def test_name_in_two_files(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(PlanishError, match=r"weight is in two files: model.safetensors and other.safetensors"):
        SafetensorsCheckpoint([file, other])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match=r"cannot be read: No such file"):
        SafetensorsCheckpoint([tmp_path / "nothing.safetensors"])
