"""Attributes put into classes and modules for a while."""

from __future__ import annotations

import types

import pytest

from planish_targets.executorch.replaced import replaced


class Base:
    def inherited(self) -> str:
        return "base"


class Owner(Base):
    @staticmethod
    def own() -> str:
        return "own"


def test_everything_is_as_before_behind_it() -> None:
    module = types.ModuleType("module")
    with replaced(Owner, own=None, inherited=None), replaced(module, new=1):
        assert Owner.own is None
        assert module.new == 1
    with pytest.raises(RuntimeError, match="stop"), replaced(Owner, own=None):
        raise RuntimeError("stop")
    assert (Owner.own(), Owner().own(), Owner().inherited()) == ("own", "own", "base")
    assert "inherited" not in vars(Owner)
    assert not hasattr(module, "new")


def test_one_within_another() -> None:
    with replaced(Base, inherited=lambda _: "outer"):
        with replaced(Base, inherited=lambda _: "inner"):
            assert Owner().inherited() == "inner"
        assert Owner().inherited() == "outer"
    assert Owner().inherited() == "base"
