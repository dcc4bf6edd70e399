"""Why a row cannot train, in the words that reports count by."""

from __future__ import annotations

NO_IMAGE = "no image"
MARKS = "marks and images do not match"
UNDECODABLE = "undecodable image"
TOO_MANY_PIXELS = "too many pixels"
ASPECT_RATIO = "aspect ratio"
NAMED_IMAGE = "image is named, not held"
FOREIGN_IMAGE = "image outside the folder"
MISSING_IMAGE = "image file missing"
NO_GOLD = "no gold"
EMPTY_QUESTION = "empty question"
VIDEO = "video"


class RefusalError(Exception):
    """One row, or one image of it, cannot be used. Never leaves this room: it becomes a dropped row or a DataError.

    Attributes:
        reason: One of the reasons above.
        detail: What was found, with its value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
