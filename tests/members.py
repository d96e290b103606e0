"""Finds the members of a protocol by walking their folder, so that a new file is tested without a
list."""

import dataclasses
import importlib
import pkgutil


def members(package: str, method: str = "__call__") -> list[type]:
    """Public classes with an `example` and the given method, defined in the modules of a
    package."""
    root = importlib.import_module(package)
    found = []
    for info in pkgutil.iter_modules(root.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for name, value in sorted(vars(module).items()):
            own = isinstance(value, type) and value.__module__ == module.__name__
            if (
                own
                and not name.startswith("_")
                and hasattr(value, "example")
                and hasattr(value, method)
            ):
                found.append(value)
    return found


def fields_without_default(kind: type) -> list[str]:
    """Names of dataclass fields that a caller would have to give."""
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is missing and field.default_factory is missing and field.init
    ]
