"""A Config read without running its file is the Config that the file has."""

from dataclasses import fields

import pytest

from medssl import registry

ALL = [(kind, name) for kind in ("methods", "evals") for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_config_read_is_the_config_run(kind, name):
    def shape(config):
        return [(f.name, f.type, f.default) for f in fields(config)]

    assert shape(registry.config(kind, name)) == shape(registry.load(kind, name).Config)


def test_presets_read_are_the_presets_run():
    from medssl import views

    assert registry.keys("views", "PRESETS") == sorted(views.PRESETS)


def test_an_unknown_name_says_what_is_known():
    with pytest.raises(ValueError, match="no 'knm' among evals: choose from knn, linear_probe"):
        registry.load("evals", "knm")


def test_a_missing_mapping_is_named():
    with pytest.raises(LookupError, match=r"views.py has no NOTHING"):
        registry.keys("views", "NOTHING")
