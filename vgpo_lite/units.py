"""Numbers with their units, as a person reads them."""

from __future__ import annotations


def memory(count: float) -> str:
    """Bytes in decimal units, as cards are sold.

    >>> memory(7_640_000), memory(12_300_000_000)
    ('7.6 MB', '12.3 GB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def amount(count: int) -> str:
    """A count of parameters, short.

    >>> amount(1_260_000), amount(2_208_985_600), amount(640)
    ('1.26 M', '2.21 B', '640')
    """
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def duration(seconds: float) -> str:
    """A time span.

    >>> duration(9.26), duration(75), duration(3700)
    ('9.3 s', '1:15', '1:01:40')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(share: float) -> str:
    """A share of one.

    >>> percent(0.4812)
    '48.1 %'
    """
    return f"{100 * share:.1f} %"
