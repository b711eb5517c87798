"""A compile's result, small but complete: two targets that worked and one that was refused; and keys to sign it."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from safetensors.torch import save_file

from planish.compiled import Compiled, TargetResult, TensorBytes
from planish.request import Request
from planish.source import open_source
from planish.verdict import Divergence, Failed, Metric, NotRun, Passed
from planish_passes.infra import Refusal, Step
from planish_targets.contract import Artifact, Evidence, Placed, Placement

# Windows of versions that do not change with the real targets.
KNOWN = {"onnxruntime": SimpleNamespace(requires={"onnxruntime": ">=1.22,<2"})}


def model_folder(folder: Path) -> Path:
    """A model folder; its weights are never read as a model."""
    (folder / "1_Pooling").mkdir(parents=True)
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_attention_heads": 2}
    texts = {
        "config.json": json.dumps(config),
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "special_tokens_map.json": "{}",
        "vocab.txt": "[PAD]\n[UNK]\n",
        "modules.json": "[]",
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
        "data_config.json": "{}",
        "LICENSE": "Apache License\n",
        "NOTICE.txt": "Made by somebody\n",
        "README.md": "---\nlicense: apache-2.0\n---\n# tiny\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    save_file({"weight": torch.ones(4, 4)}, str(folder / "model.safetensors"))
    return folder


def compiled(model: Path, work: Path, marker: str = "one", task: str | None = None, fine: bool = False) -> Compiled:
    """A compile whose artifacts contain `marker`; `fine`: Core ML passed, too."""
    work.mkdir(parents=True, exist_ok=True)
    request = Request(
        model=str(model),
        targets=("onnxruntime", "coreml", "executorch"),
        recipe="int8",
        loaders=False,  # looked at in tests/toolchain/loaders
        output=work / "out.planish",
        task=task,
        runner={"coreml": "ssh mac /Users/somebody/bin/planish-run"},
    )
    gate = Metric("cosine_min", 0.9991, 0.99, at_most=False, case="short")
    return Compiled(
        request=request,
        source=open_source(str(model), task=task),
        verdicts=(Passed("capture", Evidence.EXECUTED, (Metric("relative_max", 2e-7, 1e-5),), "torch"),),
        targets=(_onnx(work, marker, gate), _coreml(work, marker, gate, fine), _refused()),
        weights=(TensorBytes("encoder.weight", 64, 24, "int8 per channel"),),
        refused=(Refusal("pooler (aten.linear)", "not in the recipe", "pooler"),),
        steps=(Step("Quantise", 1, (), 10, 11),),
        notes=(f"weights of {model} are tied", marker),
    )


def _golden() -> dict[str, Any]:
    sizes = {"short": (1, 3), "padded": (2, 5)}
    given = {c: {"input_ids": torch.arange(b * s).reshape(b, s)} for c, (b, s) in sizes.items()}
    wanted = {c: {"last_hidden_state": torch.full((b, s, 8), 0.5)} for c, (b, s) in sizes.items()}
    return {"golden_inputs": given, "golden_outputs": wanted}


def _onnx(work: Path, marker: str, gate: Metric) -> TargetResult:
    folder = work / "onnxruntime"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(marker.encode() * 50)
    (folder / "model.onnx.data").write_bytes(bytes(range(256)))
    return TargetResult(
        target="onnxruntime",
        artifact=Artifact("onnxruntime", folder, "model.onnx", {"inputs": ("input_ids",)}, (f"see {folder}/x",)),
        verdicts=(Passed("lowering", Evidence.EXECUTED, (gate,), "ONNX Runtime CPU"),),
        placement=Placement("partition", (Placed("n0", "MatMul", "accelerated", "CPU"),)),
        latency={"short": 0.002},
        latency_device="this machine",
        shapes={"input_ids": ("batch", "sequence")},
        axes={"batch": (1, 64), "sequence": (1, 512)},
        steps=(Step("Expand", 3, (), 11, 20),),
        **_golden(),
    )


def _coreml(work: Path, marker: str, gate: Metric, fine: bool) -> TargetResult:
    folder = work / "coreml"
    data = folder / "model.mlpackage" / "Data"
    data.mkdir(parents=True)
    (folder / "model.mlpackage" / "Manifest.json").write_text("{}")
    (data / "weight.bin").write_bytes(marker.encode() * 9)
    worst = Metric("max_abs", float("nan"), 1e-3, case="padded")
    at = Divergence("linear_3", "planish.linear_q", "encoder.layer.3.output", float("inf"))
    lowering: Passed | Failed = Passed("lowering", Evidence.EMULATED, (gate,), "MIL interpreter")
    if not fine:
        lowering = Failed("lowering", Evidence.EMULATED, "max_abs is NaN", (worst,), "MIL interpreter", at)
    return TargetResult(
        target="coreml",
        artifact=Artifact("coreml", folder, "model.mlpackage"),
        verdicts=(Passed("quality", Evidence.STRUCTURAL, (gate,), "rules"), lowering),
        placement=Placement("advice", (Placed("n0", "linear", "unknown", "ANE", "no source"),), ("rank 6",)),
        shapes={"input_ids": (1, 128)},
        **_golden(),
    )


def _refused() -> TargetResult:
    return TargetResult("executorch", None, (NotRun("lowering", "aten.foo has no form here"),))


@dataclass(frozen=True)
class Pair:
    """A key: PEM files of both halves."""

    private: Path
    public: Path


def key_pair(folder: Path, name: str, password: bytes | None = None) -> Pair:
    """A new P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    pair.private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    pair.public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return pair


def certificates(folder: Path, pair: Pair, name: str) -> tuple[Path, Path]:
    """(root, certificate of the key that the root vouches for), PEM files."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    key = serialization.load_pem_public_key(pair.public.read_bytes())
    root = _certificate("Root", "Root", root_key.public_key(), root_key, ca=True)
    leaf = _certificate(name, "Root", key, root_key, ca=False)
    paths = folder / f"{name}.root.pem", folder / f"{name}.cert.pem"
    for path, made in zip(paths, (root, leaf), strict=True):
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return paths


def _certificate(subject: str, issuer: str, key: Any, signing: Any, *, ca: bool) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    use = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage = x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False, **use
    )
    began = datetime.datetime(2026, 1, 1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key)
        .serial_number(7 if ca else 8)
        .not_valid_before(began)
        .not_valid_after(began + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    return builder.sign(signing, hashes.SHA256())


RUNNER = """
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
given, returned = map(Path, sys.argv[1:3])
off = float(sys.argv[0].rpartition("-")[2].removesuffix(".py"))
inputs = load_file(given / "inputs.safetensors")
def answer(ids): return np.full((*ids.shape, 8), 0.5 + off, "float32")
answers = {k.partition("/")[0] + "/last_hidden_state": answer(v) for k, v in inputs.items()}
save_file(answers, returned / "outputs.safetensors")
facts = {"protocol": 1, "device": "Pocket 3", "versions": {"system": "7"}, "evidence": "executed"}
(returned / "device.json").write_text(json.dumps(facts))
"""


def runner(folder: Path, off: float = 0.0) -> str:
    """A command that answers as the bundle expects, or `off` by so much."""
    path = folder / f"runner-{off}.py"
    path.write_text(RUNNER)
    return f"{sys.executable} {path}"
