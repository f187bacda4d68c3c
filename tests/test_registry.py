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
    with pytest.raises(
        ValueError, match=r"no 'knm' among evals: did you mean knn\? choose from fi"
    ):
        registry.load("evals", "knm")


def test_a_missing_mapping_is_named():
    with pytest.raises(LookupError, match=r"views.py has no NOTHING"):
        registry.keys("views", "NOTHING")


@pytest.mark.parametrize("name", registry.names("methods"))
@pytest.mark.parametrize(("attribute", "otherwise"), [("preset", "asymmetric"), ("backbones", ())])
def test_what_planning_reads_of_a_method_is_what_runs(name, attribute, otherwise):
    method = registry.load("methods", name).Method
    assert registry.attribute("methods", name, attribute, otherwise) == getattr(method, attribute)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method_says_its_idea_its_paper_and_what_each_knob_does(name):
    about = registry.about("methods", name)
    assert len(about.idea) > 20
    assert about.paper.startswith("https://arxiv.org/abs/")
    assert all(effect for *_, effect in about.settings)
    assert {s[0] for s in about.settings} | {"version"} == {
        f.name for f in fields(registry.config("methods", name))
    }
    shown = registry.attribute("methods", name, "cost", 1.0)
    assert shown == registry.load("methods", name).Method.cost
