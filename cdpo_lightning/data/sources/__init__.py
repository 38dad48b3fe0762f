"""The data sets, one module for each or for each family, and the registries that hold them.

Importing this package imports every module in it, so a new file needs no entry elsewhere. Such a module must only define its
sources and register them when it is imported.
"""

from importlib import import_module
from pkgutil import iter_modules

from cdpo_lightning.data.source_registry import (
    CHOICE_SOURCES,
    DEMONSTRATION_SOURCES,
    LABEL_SOURCES,
    PAIR_SOURCES,
    PROMPT_SOURCES,
)

__all__ = ["CHOICE_SOURCES", "DEMONSTRATION_SOURCES", "LABEL_SOURCES", "PAIR_SOURCES", "PROMPT_SOURCES"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
