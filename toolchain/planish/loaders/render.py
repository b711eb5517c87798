"""From a bundle to source files: templates with what the contract says. Every word of a bundle is data, never code."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from planish.bundle.read import Bundle
from planish.loaders.contract import Contract, Target, Tensor, contract
from planish_passes.errors import PlanishError

FOLDER = "loaders"  # inside a bundle
# Language -> runtime -> template, in the order in which people read them; "" = whatever the bundle holds.
LANGUAGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "python": {
        "": (
            "planish_loader/__init__.py",
            "planish_loader/bundle.py",
            "planish_loader/contract.py",
            "planish_loader/text.py",
        ),
        "onnxruntime": ("planish_loader/onnx_model.py",),
        "executorch": ("planish_loader/executorch_model.py",),
    },
    "cpp": {
        "": (
            "CMakeLists.txt",
            "planish/bundle.hpp",
            "planish/contract.hpp",
            "planish/text.hpp",
            "planish/tokenizers_cpp.hpp",
        ),
        "onnxruntime": ("planish/onnxruntime.hpp",),
        "executorch": ("planish/executorch.hpp",),
    },
    "kotlin": {
        "": ("planish/Bundle.kt", "planish/Contract.kt", "planish/Text.kt", "adapters/DjlTokenizer.kt"),
        "onnxruntime": ("planish/OnnxModel.kt",),
        "executorch": ("planish/ExecutorchModel.kt",),
    },
    "csharp": {"": ("Bundle.cs", "Contract.cs"), "onnxruntime": ("OnnxModel.cs",)},
    "swift": {
        "": (
            "Package.swift",
            "Sources/PlanishLoader/Bundle.swift",
            "Sources/PlanishLoader/Contract.swift",
            "Sources/PlanishLoader/Model.swift",
            "Adapters/SwiftTransformers.swift",
        ),
        "coreml": ("Sources/PlanishLoader/CoreMLModel.swift",),
        "executorch": ("Sources/PlanishLoader/ExecutorchModel.swift",),
    },
}
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}  # the same in all of them
_PLAIN = frozenset(string.ascii_letters + string.digits + " _.,:;()[]<>+-=%'/")  # no star: comments may end with one


def loaders(bundle: Bundle, languages: Sequence[str] | None = None) -> dict[str, bytes]:
    """Path below the loaders' folder -> source file. Equal bundles have equal files.

    Args:
        bundle: what to generate for; its manifest need not list everything yet.
        languages: some of `LANGUAGES`; None = all that have something to open.

    Raises:
        PlanishError: a language that is not known, or one that opens nothing of this bundle.
    """
    facts = contract(bundle)
    runtimes = {t.runtime for t in facts.targets}
    made: dict[str, bytes] = {}
    for language in LANGUAGES if languages is None else languages:
        known = _known(language)
        if not runtimes & set(known):
            if languages is not None:
                hint = f"it opens artifacts of {', '.join(r for r in known if r)}"
                raise PlanishError(f"The {language} loader opens no target of this bundle.", str(bundle.root), hint)
            continue
        for runtime in ("", *sorted(runtimes & set(known))):
            for name in known[runtime]:
                made[f"{language}/{name}"] = render(language, name, facts)
    return dict(sorted(made.items()))


def write_loaders(bundle: Bundle, into: Path, languages: Sequence[str] | None = None) -> dict[str, bytes]:
    """Write them below a folder, outside the bundle.

    Raises:
        PlanishError: as above; or the folder is not empty, or may not be written.
    """
    made = loaders(bundle, languages)
    if into.resolve().is_relative_to(bundle.root):
        raise PlanishError("A bundle stays as it was made.", str(into), "give a folder outside the bundle")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise PlanishError("There is already something of that name.", str(into), "give an empty or a new folder")
    try:
        put(made, into)
    except OSError as problem:
        what = f"The loaders cannot be written: {problem.strerror or problem}."
        raise PlanishError(what, str(problem.filename or into), "give another folder") from problem
    return made


def put(made: Mapping[str, bytes], into: Path) -> None:
    """Write files and the folders that they are in."""
    for name, data in made.items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def render(language: str, name: str, facts: Contract) -> bytes:
    """One file."""
    template = _environment(language).get_template(f"{language}/{name}.j2")
    mine = {r for r in _known(language) if r}
    told = {"facts": facts, "targets": [t for t in facts.targets if t.runtime in mine]}
    return template.render(told).encode()


def _known(language: str) -> Mapping[str, tuple[str, ...]]:
    if language not in LANGUAGES:
        raise PlanishError(f"There is no loader in {language!r}.", "--lang", f"there are: {', '.join(LANGUAGES)}")
    return LANGUAGES[language]


@cache
def _environment(language: str) -> Environment:
    # The package is found by its path: loaders are rendered from wheels, too.
    assert files("planish.loaders").joinpath("templates").is_dir()
    made = Environment(
        loader=PackageLoader("planish.loaders", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # not HTML: strings go through `quote`, comments through `plain`
    )
    made.filters.update(
        quote=partial(quote, language), plain=plain, shape=_shape, row=partial(_row, language), sizes=_sizes
    )
    return made


def quote(language: str, text: str) -> str:
    """A string literal of the language, in ASCII: no character of a bundle can end it or turn the line around."""
    return '"' + "".join(_escaped(language, c) for c in text) + '"'


def _escaped(language: str, char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char in '"\\' or (char == "$" and language == "kotlin"):
        return f"\\{char}"
    if " " <= char <= "~" and not (char == "?" and language == "cpp"):  # ??/ is a trigraph
        return char
    if language == "cpp":
        return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "replace"))
    if language == "swift":
        return f"\\u{{{ord(char):X}}}"
    if language == "python":
        return f"\\U{ord(char):08x}"
    return "".join(f"\\u{unit:04x}" for unit in _units(char))


def _units(char: str) -> list[int]:
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def plain(text: object) -> str:
    """A word of a bundle inside a comment: one line, and nothing that ends a comment."""
    return "".join(c if c in _PLAIN else "?" for c in str(text))[:200]


def _shape(shape: Sequence[int | str]) -> str:
    return plain("[" + ", ".join(str(size) for size in shape) + "]")


def _sizes(port: Tensor, target: Target, unknown: int | None = None) -> list[int]:
    """Sizes of a port; of a dimension that may vary `unknown`, or the smallest one."""
    least = {name: low for name, low, _ in target.axes}
    return [
        size if isinstance(size, int) else least.get(size, 0) if unknown is None else unknown for size in port.shape
    ]


def _row(language: str, values: Sequence[int | str]) -> str:
    """Values of a list, without what stands around it; a Python tuple of one has a comma behind it."""
    made = ", ".join(quote(language, v) if isinstance(v, str) else str(int(v)) for v in values)
    return made + ("," if language == "python" and len(values) == 1 else "")
