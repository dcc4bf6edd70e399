"""`python -m vgpo_lite` is `vgpo-lite`."""

from __future__ import annotations

from vgpo_lite.commands import main

if __name__ == "__main__":
    main()
