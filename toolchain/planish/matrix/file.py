"""planish.toml with several bundles: [[model]] tables, recipes, and what each of them changes.

A key that is given nearer to a bundle wins: top level, [recipe.NAME], [[model]], [model.recipe.NAME].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.naming import bundle_name, model_name
from planish.request import Gates, Request
from planish.request_checks import Found, Names, Problem, RequestError, known_keys, nearest, unknown_names, validated
from planish.request_file import has_several, merged, resolve_paths
from planish.request_toml import key_lines, parse, read_text

_SUFFIX = ".planish"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_REQUEST = tuple(Request.model_fields)
_SEVERAL = ("recipes", "separate_targets")
_TOP = (*_REQUEST, *_SEVERAL, "cache")
_MODEL = (*_REQUEST, *_SEVERAL, "name")
_RECIPE = tuple(key for key in _REQUEST if key not in ("model", "output"))

Key = tuple[str, ...]
Layer = tuple[Key, Mapping[str, Any]]  # where a table stands in the file, and what it says of requests


@dataclass(frozen=True)
class Job:
    """One bundle.

    Args:
        name: of the bundle, without `.planish`; what --only and --why take.
        model: name of the model in the file.
        recipe: name of the recipe in the file.
        request: with absolute paths and with `output`.
    """

    name: str
    model: str
    recipe: str
    request: Request

    @property
    def output(self) -> Path:
        """The bundle."""
        assert self.request.output is not None
        return self.request.output


@dataclass(frozen=True)
class Matrix:
    """All bundles of a file, in its order, and the cache that it names (a folder or URL)."""

    file: Path
    jobs: tuple[Job, ...]
    cache: str | None = None


def load_matrix(file: Path, names: Names) -> Matrix:
    """Read and check a file of either form; a file with one model is a matrix of one bundle.

    Raises:
        RequestError: all that is wrong, each with its line.
        PlanishError: the file cannot be read.
    """
    text = read_text(file)
    table = parse(text, file)
    reader = _Reader(file, table, names)
    jobs = reader.jobs()
    lines = key_lines(text)
    if reader.found:
        problems = {
            Problem(what, _where(file, lines, key), hint): _line(lines, key) for key, what, hint in reader.found
        }
        raise RequestError(sorted(problems, key=lambda p: problems[p]), str(file))
    cache = table.get("cache")
    if cache is not None and "://" not in cache:
        cache = str(file.absolute().parent / Path(cache).expanduser())
    return Matrix(file, jobs, cache)


class _Reader:
    def __init__(self, file: Path, table: Mapping[str, Any], names: Names) -> None:
        self.file, self.table, self.names = file.absolute(), table, names
        self.found: list[Found] = []

    def jobs(self) -> tuple[Job, ...]:
        self._check_shapes()
        if self.found:
            return ()
        if not has_several(self.table):
            return self._only()
        jobs = [job for key, model in self._models() for job in self._of_model(key, model)]
        taken: set[str] = set()
        for job in jobs:
            if job.name.casefold() in taken:
                hint = "give the models names of their own: name = ..."
                self.found.append((("model",), f"two bundles would be called {job.name}", hint))
            taken.add(job.name.casefold())
        return tuple(jobs)

    def _only(self) -> tuple[Job, ...]:
        data = known_keys(self.table)
        request = self._request([((), data)])
        if request is None:
            return ()
        at = request.output or self.file.parent / bundle_name(request.model, request.recipe)
        name = at.name.removesuffix(_SUFFIX)
        placed = request.model_copy(update={"output": at})
        return (Job(name, model_name(request.model), request.recipe, placed),)

    def _models(self) -> Iterator[Layer]:
        models = self.table.get("model")
        if isinstance(models, list):
            yield from ((("model", str(i)), model) for i, model in enumerate(models))
        else:
            yield (), {}

    def _of_model(self, key: Key, model: Mapping[str, Any]) -> Iterator[Job]:
        for recipe, where in self._recipes(key, model):
            request = self._request(self._layers(key, model, recipe, where))
            if request is None:
                continue
            name = str(model.get("name") or model_name(request.model))
            if not _NAME.fullmatch(name):
                hint = "letters, digits, and . _ + - inside"
                self.found.append(((*key, "name"), f"{name!r} cannot be the name of a bundle", hint))
                continue
            yield from self._split(name, recipe, request, bool(self._nearest("separate_targets", key, model)[1]))

    def _split(self, model: str, recipe: str, request: Request, each: bool) -> Iterator[Job]:
        folder = request.output or self.file.parent
        parts = [((t,), f"-{t.replace(':', '-')}") for t in request.targets] if each else [(request.targets, "")]
        for targets, suffix in parts:
            name = f"{model}-{recipe}{suffix}"
            # The commands of other targets do not matter to this bundle.
            runner = {t: command for t, command in request.runner.items() if t in targets}
            update = {"targets": targets, "runner": runner, "output": folder / f"{name}{_SUFFIX}"}
            yield Job(name, model, recipe, request.model_copy(update=update))

    def _recipes(self, key: Key, model: Mapping[str, Any]) -> list[tuple[str, Key]]:
        """Names of the recipes of a model, and the key that says so."""
        for place, table in ((key, model), ((), self.table)):
            if "recipes" in table:
                return [(name, (*place, "recipes")) for name in dict.fromkeys(table["recipes"])]
            if isinstance(table.get("recipe"), str):
                return [(table["recipe"], (*place, "recipe"))]
            if isinstance(table.get("recipe"), dict):
                return [(name, (*place, "recipe", name)) for name in table["recipe"]]
        return [("float", ())]

    def _layers(self, key: Key, model: Mapping[str, Any], recipe: str, where: Key) -> list[Layer]:
        above = [((), self.table), (("recipe", recipe), _inner(self.table, recipe))]
        if key:
            above += [(key, model), ((*key, "recipe", recipe), _inner(model, recipe))]
        layers: list[Layer] = [(where, {"recipe": recipe})]
        for place, table in above:
            # In a table of a recipe, `recipe` is a recipe; elsewhere it lists them. A list of models is no model.
            options = place[-2:-1] == ("recipe",)
            said = known_keys(table).items()
            layers.append(
                (
                    place,
                    {
                        k: v
                        for k, v in said
                        if (k != "recipe" or options) and not (k == "model" and isinstance(v, list))
                    },
                )
            )
        return layers

    def _request(self, layers: Sequence[Layer]) -> Request | None:
        data: dict[str, Any] = {}
        for _, said in layers:
            data = merged(data, said)
        data = resolve_paths(data, self.file)
        data.setdefault("targets", self.names.default)
        request, found = validated(data)
        found += unknown_names(data, self.names)
        self.found += [(_origin(key, layers), what, hint) for key, what, hint in found]
        if request is None or found:
            return None
        return request.model_copy(update={"targets": tuple(dict.fromkeys(request.targets))})

    def _nearest(self, name: str, key: Key, model: Mapping[str, Any]) -> tuple[Key, Any]:
        if name in model:
            return (*key, name), model[name]
        return (name,), self.table.get(name)

    def _check_shapes(self) -> None:
        """Keys and forms that are not those of a request; requests themselves are checked bundle by bundle."""
        self._check_table((), self.table, _TOP)
        models = self.table.get("model")
        if isinstance(models, list):
            if not models:
                self.found.append(
                    (("model",), "model is an empty list", 'begin one with [[model]], then model = "..."')
                )
            for number, model in enumerate(models):
                key = ("model", str(number))
                if not isinstance(model, dict):
                    hint = 'begin each with [[model]], then model = "..."'
                    self.found.append((("model",), f"model {number + 1} is no table", hint))
                    continue
                self._check_table(key, model, _MODEL)
                if not isinstance(model.get("model"), str):
                    self.found.append((key, "this [[model]] names no model", 'model = "./folder", a hub id or a .gguf'))
                if not isinstance(model.get("name", ""), str):
                    self.found.append(((*key, "name"), "name should be a text", 'name = "minilm"'))
        if not isinstance(self.table.get("cache", ""), str):
            self.found.append((("cache",), "cache should be a text", 'a folder, or a URL such as "s3://bucket/cache"'))

    def _check_table(self, key: Key, table: Mapping[str, Any], allowed: Sequence[str]) -> None:
        self.found += _unknown(key, table, allowed)
        recipes = table.get("recipes")
        if "recipes" in table and not (
            isinstance(recipes, list) and recipes and all(isinstance(name, str) for name in recipes)
        ):
            self.found.append(((*key, "recipes"), "recipes should be a list of names", 'recipes = ["float", "int8"]'))
        if not isinstance(table.get("separate_targets", False), bool):
            self.found.append(
                ((*key, "separate_targets"), "separate_targets should be true or false", "one bundle each")
            )
        options = table.get("recipe")
        for name, said in options.items() if isinstance(options, dict) else ():
            place = (*key, "recipe", name)
            if not isinstance(said, dict):
                hint = f"[recipe.{name}], then options of it"
                self.found.append((place, f"recipe.{name} is no table", hint))
            else:
                self.found += _unknown(place, said, _RECIPE)


def _unknown(place: Key, table: Mapping[str, Any], allowed: Sequence[str]) -> Iterable[Found]:
    gates = table.get("gates")
    inside = (((*place, "gates"), gates, tuple(Gates.model_fields)),) if isinstance(gates, dict) else ()
    for at, keys, known in ((place, table, tuple(allowed)), *inside):
        for key in keys:
            if key not in known:
                shown = ".".join((*(part for part in at if not part.isdigit()), key))
                yield (*at, key), f"unknown key {shown!r}", nearest(key, list(known), "key")


def _inner(table: Mapping[str, Any], recipe: str) -> Mapping[str, Any]:
    options = table.get("recipe")
    return options.get(recipe, {}) if isinstance(options, dict) else {}


def _origin(key: Key, layers: Sequence[Layer]) -> Key:
    """Where a key of a merged request comes from: the last layer that has it."""
    deep = 2 if key[0] in ("gates", "runner") and len(key) > 1 else 1
    for place, said in reversed(layers):
        value: Any = said
        for part in key[:deep]:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return place if place[-1:] in (("recipes",), ("recipe",)) else (*place, *key)
    return key


def _line(lines: Mapping[Key, int], key: Key) -> int:
    return next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), 0)


def _where(file: Path, lines: Mapping[Key, int], key: Key) -> str:
    line = _line(lines, key)
    return f"{file}:{line}" if line else str(file)
