"""The quick reader answers what gguf's own reader answers, and stops where that stops."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from planish.checkpoint.gguf_reader import quick_gguf, quick_reader


def written(path: Path, endian: Any = gguf.GGUFEndian.LITTLE, tokens: int = 50) -> Path:
    writer = GGUFWriter(path, "llama", endianess=endian)
    writer.add_token_list([f"t{i}" * (i % 3) for i in range(tokens)])
    writer.add_token_scores([float(i) / 7 for i in range(tokens)])
    writer.add_array("some.flags", [True, False, True])
    writer.add_array("some.empty", [])
    writer.add_name("Größe")
    writer.add_rope_freq_base(10000.0)
    writer.add_tensor("weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("endian", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
def test_the_same_fields_and_tensors(endian: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "some.gguf", endian)
    own, quick = GGUFReader(path), quick_reader()(path)
    assert list(quick.fields) == list(own.fields)
    for name, field in own.fields.items():
        assert quick.fields[name].types == field.types, name
        assert quick.fields[name].contents() == field.contents(), name
        assert [quick.fields[name].parts[i].tobytes() for i in quick.fields[name].data] == [
            field.parts[i].tobytes() for i in field.data
        ], name
    assert own.fields["tokenizer.ggml.tokens"].contents(2) == "t2t2"
    assert [(t.name, t.data_offset) for t in quick.tensors] == [(t.name, t.data_offset) for t in own.tensors]
    assert np.array_equal(quick.tensors[0].data, own.tensors[0].data)


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.scores"])
def test_an_array_that_claims_more_than_the_file_holds(key: str, tmp_path: Path) -> None:
    path = written(tmp_path / "some.gguf")
    data = bytearray(path.read_bytes())
    at = data.index(key.encode()) + len(key) + 8  # behind the types of field and elements
    data[at : at + 8] = struct.pack("<Q", 1 << 50)
    path.write_bytes(data)
    with pytest.raises((ValueError, struct.error)):
        quick_reader()(path)


def test_transformers_uses_it_and_only_inside() -> None:
    own, table = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(KeyError, match="some"):
        _use()
    assert gguf.GGUFReader is own
    assert gguf.get_tensor_name_map is table


def _use() -> None:
    with quick_gguf():
        assert gguf.GGUFReader is quick_reader()
        one = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is one
        raise KeyError("some")


def test_it_is_quick(tmp_path: Path) -> None:
    path = written(tmp_path / "some.gguf", tokens=20_000)

    def cost(reader: Any) -> float:
        start = time.process_time()
        reader(path)
        return time.process_time() - start

    assert cost(quick_reader()) < cost(GGUFReader) / 4
