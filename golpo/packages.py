"""Packages that only some commands need: asked for in one sentence when they are missing."""

import importlib
from types import ModuleType

from golpo.errors import MissingPackageError


def import_optional(name: str, purpose: str, install: str | None = None) -> ModuleType:
    """Import `name`. Raises MissingPackageError that says what for, and how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = install or name.partition(".")[0]
        raise MissingPackageError(
            f"{purpose} needs the package {package!r}, which cannot be imported ({error}); "
            f"run: pip install {package}"
        ) from None
