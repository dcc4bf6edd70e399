"""vgpo-lite from a checkout: `python cli.py train` is `vgpo-lite train`."""

from __future__ import annotations

from vgpo_lite.commands import main

if __name__ == "__main__":
    main()
