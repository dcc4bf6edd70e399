"""The small models of the stand-in hub, published once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hub.models import SMALLEST_OF_EACH_FAMILY, UNTIED, write_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.hub.server import HubServer


@pytest.fixture(scope="session")
def published(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The folders of the small models, by the hub id they are published under."""
    folders = {}
    for name in (*SMALLEST_OF_EACH_FAMILY, *UNTIED):
        folders[name] = write_model(tmp_path_factory.mktemp("models") / "model", name)
        hub.publish("models", name, folders[name])
    return folders
