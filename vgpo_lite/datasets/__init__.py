"""Row -> Sample: presets, hub, local files and the built-in shapes; every row checked before the GPU is touched."""

from vgpo_lite.datasets.checks import refuse_if_too_bad
from vgpo_lite.datasets.open import open_rows
from vgpo_lite.datasets.reports import DataReport, DataSplit
from vgpo_lite.datasets.rows import Rows

__all__ = ["DataReport", "DataSplit", "Rows", "open_rows", "refuse_if_too_bad"]
