"""Encoder-decoder models as two programs: together they compute what the model does."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from decoders import empty
from support import random_model, store_of
from torch import Tensor, nn

from planish import build
from planish.bundle import open_bundle, write_bundle
from planish.capture import capture
from planish.compiled import Compiled, Silent
from planish.request import Request
from planish.sharing import CHECK
from planish.tasks.seq2seq import MASK, DecodePart, EncodePart
from planish.verdict import Failed, Passed
from planish.verify import verify_bundle
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_targets import registry

_TWO = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
_WIDE = {**_TWO, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 128}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_T5 = {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
MODELS: Mapping[str, Any] = {
    "whisper": lambda: tf.WhisperConfig(
        num_mel_bins=16, max_source_positions=50, max_target_positions=96, **_WIDE, **_ENDS
    ),
    "t5": lambda: tf.T5Config(num_decoder_layers=2, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **_T5),
    "bart": lambda: tf.BartConfig(max_position_embeddings=96, **_WIDE, **_ENDS),
    "marian": lambda: tf.MarianConfig(max_position_embeddings=96, **_WIDE, **_ENDS),
}
CUTS = [9, 5, 1, 1]


def auto(family: str) -> Any:
    return tf.AutoModelForSpeechSeq2Seq if family == "whisper" else tf.AutoModelForSeq2SeqLM


def read(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if family == "whisper":
        return {"input_features": torch.randn(1, 16, 100, generator=generator)}
    ids = torch.randint(3, 128, (1, 9), generator=generator)
    return {"input_ids": ids, MASK: torch.tensor([[1] * 7 + [0] * 2])}


@cache
def programs(family: str) -> tuple[Program, Program, nn.Module]:
    config = MODELS[family]()
    model = random_model(config, auto(family))
    made = (capture(auto(family), config, part("x"), store_of(model)).program for part in (EncodePart, DecodePart))
    encode, decode = (run_passes(p, pipeline.fuse()).program for p in made)
    return encode, decode, model


def logits(family: str, change: Mapping[str, Tensor] | None = None, form: Program | None = None) -> Tensor:
    """Both programs in turn: the input at once, the tokens in parts."""
    encode, decode, _ = programs(family)
    decode = form or decode
    given = {**interpret(encode, read(family)), **read(family), **(change or {})}
    states, at, found = empty(decode, 1), 0, []
    for length in CUTS:
        slots = torch.arange(at, at + length)[None]
        call = {**given, **states, "input_ids": tokens()[:, at : at + length], "position_ids": slots}
        result = interpret(decode, call)
        states, at = {into: result[out] for out, into in decode.states}, at + length
        found.append(result["logits"])
    return torch.cat(found, 1)


def tokens() -> Tensor:
    return torch.randint(3, 128, (1, sum(CUTS)), generator=torch.Generator().manual_seed(1))


def error(family: str, *args: Any, **how: Any) -> float:
    with torch.no_grad():
        wanted = programs(family)[2](**read(family), decoder_input_ids=tokens()).logits
    return float((logits(family, *args, **how) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("family", MODELS)
def test_together_they_compute_what_the_model_does(family: str) -> None:
    encode, decode, _ = programs(family)
    assert error(family) < 1e-5
    assert decode.count()["planish.cached_attention"] == 2
    assert not encode.states
    assert encode.count()["planish.attention"] == 1  # nothing of the decoder but its cross keys and values is left
    names = {f"cross_key_values.{n}.{kind}" for n in range(2) for kind in ("key", "value")}
    assert {p.name for p in encode.outputs} == names
    assert names < {p.name for p in decode.inputs}


@pytest.mark.parametrize("family", MODELS)
def test_with_a_resident_cache_too(family: str) -> None:
    form = run_passes(programs(family)[1], pipeline.resident(32, {"source": 9})).program
    assert error(family, form=form) < 1e-5


def test_a_lost_mask_and_swapped_layers_are_seen() -> None:
    assert error("bart", {MASK: torch.ones(1, 9, dtype=torch.int64)}) > 1e-3
    made = interpret(programs("bart")[0], read("bart"))
    swapped = {n: made[n.replace(".0.", ".x.").replace(".1.", ".0.").replace(".x.", ".1.")] for n in made}
    assert error("bart", swapped) > 1e-2


def test_an_input_of_another_kind_is_refused_by_name() -> None:
    config = tf.Speech2TextConfig(**_WIDE, **_ENDS, max_target_positions=96)
    with pytest.raises(PlanishError, match="reads input_features"):
        capture(auto("whisper"), config, EncodePart("x"), lambda model: None)  # type: ignore[arg-type, return-value]


def compiled(family: str, target: str, into: Path, **asked: Any) -> Compiled:
    random_model(MODELS[family](), auto(family)).save_pretrained(into / "model")
    request = Request(model=str(into / "model"), targets=(target,), recipe="int8", **asked)
    return build.compile_model(request, Silent(), into / "work")


@pytest.mark.parametrize(
    ("family", "target"),
    [
        ("whisper", "onnxruntime"),
        ("t5", "onnxruntime"),
        ("bart", "executorch"),
        ("whisper", "coreml"),
        ("t5", "coreml"),
    ],
)
def test_a_whole_compile_checks_both_programs(family: str, target: str, tmp_path: Path) -> None:
    split = target == "executorch"
    result = compiled(family, target, tmp_path, split_weights=split)
    assert not result.failed, result.failed
    assert [t.target for t in result.targets] == [f"{target}/encode", f"{target}/decode"]
    checks = [{v.check for v in t.verdicts} for t in result.targets]
    assert checks[0] >= {"quality", "weights", "lowering"}
    assert checks[1] >= {"quality", "weights", "lowering", "decoding"}
    assert all(next(d for d in t.drift if d.of == "quantisation").layers for t in result.targets)
    one_set_of_integers(result, 0 if family == "whisper" else 1)
    if split:
        one_file_of_weights(result, tmp_path / "bart.planish")


def one_set_of_integers(result: Compiled, common: int) -> None:
    """What both programs read is the same in the files of both, though one of them writes with it."""
    found = [registry.find(t.target.partition("/")[0]).read_weights(t.artifact) for t in result.targets if t.artifact]
    both = found[0].keys() & found[1].keys()
    assert len(both) == common
    for name in both:
        assert all(torch.equal(getattr(found[0][name], p), getattr(found[1][name], p)) for p in ("values", "scales"))


def one_file_of_weights(result: Compiled, at: Path) -> None:
    """Both programs ran over it with the bits that they had before, and run over it in the bundle."""
    assert all(any(isinstance(v, Passed) and v.check == CHECK for v in t.verdicts) for t in result.targets)
    write_bundle(result, at)
    encode, decode = (at / "targets" / t.target / "model.ptd" for t in result.targets)
    assert encode.samefile(decode)
    files = open_bundle(at).manifest.files
    assert files["targets/executorch/encode/model.ptd"] == files["targets/executorch/decode/model.ptd"]
    report = verify_bundle(at, targets=None, runner={}, threads=1, timeout=600, progress=Silent())
    assert [type(v) for t in report.targets for v in t.verdicts] == [Passed, Passed], report.failed


def test_a_decoder_that_ignores_the_encoder_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = DecodePart.given
    zeros = lambda *a: {n: t * (0 if t.is_floating_point() else 1) for n, t in given(*a).items()}  # noqa: E731
    monkeypatch.setattr(DecodePart, "given", zeros)
    random_model(MODELS["bart"](), auto("bart")).save_pretrained(tmp_path / "model")
    request = Request(model=str(tmp_path / "model"), targets=("onnxruntime",), recipe="float")
    result = build.compile_model(request, Silent(), tmp_path / "work")
    assert "capture" in {v.check for _, v in result.failed if isinstance(v, Failed)}
