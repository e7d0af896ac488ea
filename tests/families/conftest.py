"""Backbones of every family, built once per session."""

import pytest

from builders import tiny
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """Name of a kind -> its backbone."""
    built = {}

    def get(name, **settings):
        if name not in built:
            built[name] = tiny.build(name, tmp_path_factory.mktemp(name) / "backbone")
        return find_backbone(Backbone(name=str(built[name]), **settings))

    return get
