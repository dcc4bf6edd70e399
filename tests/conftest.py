"""Every test runs offline: a stand-in hub answers on the loopback address, and caches live in a folder of this run.

The variables must be set before anything imports `huggingface_hub`, which reads them once; hence at import.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.hub.server import HubServer

_HOME = tempfile.TemporaryDirectory(prefix="vgpo-lite-hub-")
_HUB = HubServer().start()
atexit.register(_HUB.stop)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two threads beside a busy process otherwise spin
os.environ.update(_HUB.environment(_HOME.name))
for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def hub() -> HubServer:
    """The stand-in hub this process and, through its environment, every process it starts talks to."""
    return _HUB


@pytest.fixture(scope="session", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Runs of tests are not drawn: a picture takes longer than many a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgpo_lite.report.draw_report", lambda folder: None)
        yield
