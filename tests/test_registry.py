"""A registry gives what was registered and refuses all else with the nearest name."""

import pytest

from cdpo_lightning.errors import ConfigError
from cdpo_lightning.registry import Registry


def updates() -> Registry[type]:
    registry: Registry[type] = Registry("constraint.update")
    registry.register("newton")(int)
    registry.register("projected")(float)
    return registry


def test_a_registered_name_gives_its_class():
    assert updates()["newton"] is int
    assert list(updates()) == ["newton", "projected"]


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(
        ConfigError, match=r"^constraint.update=newtn: unknown; did you mean newton\? expected one of newton, projected$"
    ):
        updates()["newtn"]
    with pytest.raises(ConfigError, match=r"^constraint.update=x: unknown; expected one of newton, projected$"):
        updates()["x"]


def test_no_name_is_registered_twice():
    with pytest.raises(ValueError, match="newton is registered already"):
        updates().register("newton")(bool)
