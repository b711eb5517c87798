"""Source code that apps open a bundle with: one small library per language, generated from the bundle."""

from planish.loaders.render import LANGUAGES, loaders, write_loaders

__all__ = ["LANGUAGES", "loaders", "write_loaders"]
