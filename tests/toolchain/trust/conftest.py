"""A small signed bundle (tests/bundles.py) and keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bundles import Pair, compiled, key_pair, model_folder

from planish.bundle import write_bundle
from planish.trust.check import Trusted
from planish.trust.keys import public_key
from planish.trust.sign import KeySigner, sign_bundle


@pytest.fixture(scope="session")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The key of the bundle's maker."""
    return key_pair(tmp_path_factory.mktemp("owner"), "owner")


@pytest.fixture(scope="session")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The key of a device."""
    return key_pair(tmp_path_factory.mktemp("phone"), "phone")


@pytest.fixture
def owners(owner: Pair) -> Trusted:
    return Trusted((public_key(owner.public),))


@pytest.fixture
def phones(phone: Pair) -> Trusted:
    return Trusted((public_key(phone.public),))


@pytest.fixture(scope="session")
def written(owner: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle; only to be copied."""
    root = tmp_path_factory.mktemp("trust")
    made = compiled(model_folder(root / "tiny-bert"), root, fine=True)
    at = write_bundle(made, root / "tiny-int8.planish")
    sign_bundle(at, KeySigner(owner.private))
    return at


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    """A signed bundle to spoil."""
    return Path(shutil.copytree(written, tmp_path / written.name))
