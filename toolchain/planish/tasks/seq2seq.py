"""Encoder-decoder models, as two programs: one reads the input, one writes tokens.

What the decoder asks of the encoder are keys and values of its cross attention. The first program computes them, once
per input; the second one takes them, with a cache of its own for the tokens so far.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from planish import hooks
from planish.cache import empty_pair, given_pair, probe_pair
from planish.tasks.base import Axis, Call, Input
from planish.tasks.generation import SLOTS, TOKENS, GenerationTask
from planish.tasks.text import TextTask, max_length
from planish_passes.errors import PlanishError

MASK = "attention_mask"
_SPEECH = "input_features"


@dataclass(frozen=True)
class EncodePart:
    """Input in; `cross_key_values.N.key` and `.value` [B, heads, S, width] out, for every layer of the decoder.

    The input is `input_ids` and `attention_mask` [B, S] int64, or `input_features` [B, mel bins, frames] float32.
    """

    name: str
    metric: str = "values"
    entry: str = "encode"
    dependent: bool = False

    def call(self, config: Any, model: nn.Module) -> Call:
        """See the class."""
        inputs = _reads(config, model)
        pair = probe_pair(model, _example(inputs))
        names = [n for number in range(len(pair.cross)) for n in _cross(number)]
        return Call(_Reader(model, [i.name for i in inputs]), inputs, tuple(names))

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """Sentences, or synthetic sounds."""
        if getattr(config, "num_mel_bins", None):
            return [{_SPEECH: s} for s in _sounds(folder, config)]
        return TextTask(self.name, ()).samples(folder, config, longest)

    def original(self, model: nn.Module, sample: Mapping[str, Tensor]) -> nn.Module:
        """The same call of the original model."""
        return _Read(model)

    def given(self, model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nothing: it depends on no other program."""
        return {}


@dataclass(frozen=True)
class DecodePart:
    """A decoder with a cache of its own tokens, as in `GenerationTask`, and `cross_key_values.N.*` as plain inputs.

    Where the encoder reads text, `attention_mask` [B, S] int64 says which of its positions are text.
    """

    name: str
    metric: str = "tokens"
    entry: str = "decode"
    dependent: bool = True

    def call(self, config: Any, model: nn.Module) -> Call:
        """See the class."""
        reads = _reads(config, model)
        pair = probe_pair(model, _example(reads))
        longest = _longest(config, model)
        batch, new, past = Axis("batch", 1, 64), Axis("sequence", 1, longest), Axis("past", 0, longest)
        source: int | Axis = Axis("source", 2, max_length(config, model)) if reads[0].name == TOKENS else pair.length
        inputs = [Input(name, torch.int64, (batch, new)) for name in (TOKENS, SLOTS)]
        masked = [Input(MASK, torch.int64, (batch, source))] if len(reads) > 1 else []
        outputs, states, crossed = ["logits"], [], []
        for number, (own, other) in enumerate(zip(pair.own, pair.cross, strict=True)):
            for kind, width in (("key", own.key_width), ("value", own.value_width)):
                before, after = f"past_key_values.{number}.{kind}", f"present.{number}.{kind}"
                inputs.append(Input(before, torch.float32, (batch, own.heads, past, width)))
                outputs.append(after)
                states.append((after, before))
            widths = (other.key_width, other.value_width)
            for name, width in zip(_cross(number), widths, strict=True):
                crossed.append(Input(name, torch.float32, (batch, other.heads, source, width)))
        step = _Writer(model, len(states), bool(masked))
        return Call(step, (*inputs, *crossed, *masked), tuple(outputs), tuple(states))

    def samples(self, folder: Path, config: Any, longest: int) -> Sequence[Mapping[str, Tensor]]:
        """Running text for the decoder."""
        return GenerationTask().samples(folder, config, longest)

    def original(self, model: nn.Module, sample: Mapping[str, Tensor]) -> nn.Module:
        """The original model, for decoder tokens, with one input that it has read."""
        return _Continues(model, sample)

    def given(self, model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the other program makes of the sample, by the original model."""
        with torch.no_grad():
            made = _Read(model)(**sample)
        return {**made, **({MASK: sample[MASK]} if MASK in sample else {})}


class _Reader(nn.Module):
    """Keys and values of every cross attention."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Positional, in the order of the names."""
        given = dict(zip(self.names, tensors, strict=True))
        encoded = self.model.get_encoder()(**given)  # type: ignore[operator]
        cache = empty_pair()
        ids = torch.zeros((encoded[0].shape[0], 1), dtype=torch.int64)
        mask = {MASK: given[MASK]} if MASK in given else {}
        outputs = BaseModelOutput(last_hidden_state=encoded[0])
        self.model(decoder_input_ids=ids, encoder_outputs=outputs, past_key_values=cache, use_cache=True, **mask)
        return tuple(t for layer in cache.cross_attention_cache.layers for t in (layer.keys, layer.values))


class _Read(nn.Module):
    """The same by name, as the original model is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, return_dict: bool = True, **given: Tensor) -> dict[str, Tensor]:
        """Names in, names out."""
        made = _Reader(self.model, list(given))(*given.values())
        return dict(zip(_all_cross(len(made) // 2), made, strict=True))


class _Writer(nn.Module):
    def __init__(self, model: nn.Module, states: int, masked: bool) -> None:
        super().__init__()
        self.model, self.states, self.masked = model, states, masked
        self.takes_positions = "decoder_position_ids" in inspect.signature(model.forward).parameters

    def forward(self, tokens: Tensor, slots: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        own, crossed = rest[: self.states], rest[self.states : 2 * self.states]
        extra = {"decoder_position_ids": slots} if self.takes_positions else {}
        if self.masked:
            extra[MASK] = rest[-1]
        width = int(self.model.config.d_model) if hasattr(self.model.config, "d_model") else 1
        # Only its length is looked at: keys and values are there already.
        hidden = crossed[0].new_zeros((crossed[0].shape[0], crossed[0].shape[2], width))
        cache = given_pair(own, crossed)
        with hooks.cache_slots(slots):
            result = self.model(
                decoder_input_ids=tokens,
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                past_key_values=cache,
                use_cache=True,
                **extra,
            )
        layers = cache.self_attention_cache.layers
        return (result.logits, *(t for layer in layers for t in (layer.keys, layer.values)))


class _Continues(nn.Module):
    def __init__(self, model: nn.Module, sample: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.mask = {MASK: sample[MASK]} if MASK in sample else {}
        with torch.no_grad():
            self.encoded = model.get_encoder()(**sample)  # type: ignore[operator]

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        """Logits and cache behind decoder tokens."""
        cache = empty_pair() if past_key_values is None else past_key_values
        return self.model(
            decoder_input_ids=input_ids,
            encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded[0]),
            past_key_values=cache,
            use_cache=True,
            **self.mask,
        )


def _reads(config: Any, model: nn.Module) -> tuple[Input, ...]:
    batch, kind = Axis("batch", 1, 64), getattr(model, "main_input_name", "")
    if kind == TOKENS:
        shape = (batch, Axis("sequence", 2, max_length(config, model)))
        return Input(TOKENS, torch.int64, shape), Input(MASK, torch.int64, shape)
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if kind == _SPEECH and bins and positions:
        return (Input(_SPEECH, torch.float32, (batch, int(bins), 2 * int(positions))),)
    raise PlanishError(
        f"{type(model).__name__} reads {kind or 'an unknown input'}",
        "its encoder",
        f"encoders that read {TOKENS}, or {_SPEECH} of a fixed number of frames, are supported",
    )


def _example(inputs: Sequence[Input]) -> dict[str, Tensor]:
    sizes = {"batch": 1, "sequence": 3}
    shapes = {i.name: [d if isinstance(d, int) else sizes[d.name] for d in i.shape] for i in inputs}
    return {i.name: torch.ones(shapes[i.name], dtype=i.dtype) for i in inputs}


def _longest(config: Any, model: nn.Module) -> int:
    return int(getattr(config, "max_target_positions", 0) or 0) or max_length(config, model)


def _cross(number: int) -> tuple[str, str]:
    return f"cross_key_values.{number}.key", f"cross_key_values.{number}.value"


def _all_cross(layers: int) -> list[str]:
    return [name for number in range(layers) for name in _cross(number)]


def _sounds(folder: Path, config: Any) -> list[Tensor]:
    """Synthetic sounds as the model hears them: tones, chirps, noise, pulses, silence; [1, mel bins, frames] each."""
    frames = 2 * int(config.max_source_positions)
    if not (folder / "preprocessor_config.json").is_file():
        generator = torch.Generator().manual_seed(0)
        shape = (1, int(config.num_mel_bins), frames)
        return [torch.randn(shape, generator=generator).cumsum(-1).div(frames**0.5).clamp(-1, 1) for _ in range(6)]
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    rate = int(extractor.sampling_rate)
    t = torch.arange(rate * 4) / rate
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(0))
    sounds = [
        torch.sin(440 * 6.2832 * t),
        torch.sin(6.2832 * (100 + 300 * t) * t),
        0.1 * noise,
        noise * (torch.sin(6.2832 * 3 * t) > 0.5),
        0.3 * torch.sin(150 * 6.2832 * t).sign() * torch.sin(6.2832 * t).abs() + 0.01 * noise,
        torch.zeros(len(t)),
    ]
    return [extractor(s.numpy(), sampling_rate=rate, return_tensors="pt")[_SPEECH] for s in sounds]


PARTS = {
    name: (EncodePart(name), DecodePart(name)) for name in ("automatic-speech-recognition", "text2text-generation")
}
