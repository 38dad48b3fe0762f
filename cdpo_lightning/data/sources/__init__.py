"""The data sets, one module for each or for each family, and the registries that hold them.

Importing this package imports every module in it and in its folders, so a new file needs no entry elsewhere. Such a module must
only define its sources and register them when it is imported.
"""

from importlib import import_module
from pkgutil import walk_packages

from cdpo_lightning.data.source_registry import (
    CHOICE_SOURCES,
    DEMONSTRATION_SOURCES,
    LABEL_SOURCES,
    PAIR_SOURCES,
    PROMPT_SOURCES,
)

__all__ = ["CHOICE_SOURCES", "DEMONSTRATION_SOURCES", "LABEL_SOURCES", "PAIR_SOURCES", "PROMPT_SOURCES"]

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
