"""How a command fails: one clear message on stderr, the exit code of the error, no traceback unless asked for."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

import typer

from vgpo_lite.errors import HardwareError, StorageError, VgpoLiteError
from vgpo_lite.failpoints import check_failpoints

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

STORAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What the system says when a disk is full, over quota, read-only or broken."""

SIGINT_EXIT_CODE = 130
SIGPIPE_EXIT_CODE = 141
"""128 plus the signal's number, as shells count."""


def reported(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same command, with every deliberate error told in words and turned into its exit code."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with failures_told():
            return command(*args, **kwargs)

    return run


@contextlib.contextmanager
def failures_told() -> Iterator[None]:
    """Tell a deliberate error in words and leave with its exit code.

    Raises:
        typer.Exit: Something failed that is the user's to change, or the user stopped the command.
    """
    try:
        check_failpoints()
        yield
        sys.stdout.flush()
    except VgpoLiteError as error:
        _leave(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _leave(error, "stopped", SIGINT_EXIT_CODE)
    except BrokenPipeError as error:
        raise typer.Exit(SIGPIPE_EXIT_CODE) from error
    except MemoryError as error:
        _leave(error, _out_of_memory("the machine is out of memory"), HardwareError.exit_code)
    except OSError as error:
        if error.errno not in STORAGE_ERRNOS:
            raise
        place = f" ({error.filename})" if error.filename else ""
        _leave(error, f"{error.strerror}{place}. Free space, or choose another --output.", StorageError.exit_code)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's own class, without loading torch to name it
            raise
        _leave(error, _out_of_memory("the GPU is out of memory"), HardwareError.exit_code)


def tell_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tell of an error nobody foresaw: a short message, and the traceback in a file to report."""
    if _debugging():
        sys.__excepthook__(kind, error, trace)
        return
    text = "".join(traceback.format_exception(kind, error, trace))
    path = Path(tempfile.gettempdir()) / f"vgpo-lite-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        path.write_text(f"command: {' '.join(sys.argv)}\n\n{text}", encoding="utf-8")
    except OSError:
        sys.stderr.write(text)
        path = Path("the lines above")
    summary = str(error).partition("\n")[0]
    _say(
        f"{kind.__name__}: {summary}\nThis is a fault in vgpo-lite, not in what you typed. Please report it together "
        f"with {path}, which holds the command and the traceback."
    )


def _leave(error: BaseException, message: str, exit_code: int) -> None:
    if _debugging():
        traceback.print_exception(error)
    _say(message)
    raise typer.Exit(exit_code) from error


def _say(message: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        mark = "\033[1;31merror:\033[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else "error:"
        sys.stderr.write(f"{mark} {message}\n")


def _out_of_memory(what: str) -> str:
    return (
        f"{what}. Any of these needs less: --set data.max_pixels=200704, --set max_completion_length=512, "
        "--set num_generations=4, --set memory.rows_per_micro_batch=1."
    )


def _debugging() -> bool:
    return os.environ.get("VGPO_LITE_DEBUG", "") not in ("", "0")
