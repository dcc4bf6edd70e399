"""How a command fails: one clear message on stderr, the exit code of the error, no traceback unless asked for."""

from __future__ import annotations

import contextlib
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

from vgpo_lite.errors import SIGPIPE_EXIT_CODE, ConfigError, PeerError, ending
from vgpo_lite.failpoints import check_failpoints
from vgpo_lite.launch import launched
from vgpo_lite.processes import was_told

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def reported(command: Callable[Arguments, Result], *, alone: bool = True) -> Callable[Arguments, Result]:
    """The same command, with every deliberate error told in words and turned into its exit code.

    Args:
        command: The command.
        alone: Whether it runs in one process only.
    """

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with failures_told():
            if alone and (count := launched().count) > 1:
                raise ConfigError(
                    f"launched as {count} processes, but `vgpo-lite train` alone runs in several. Start this command "
                    "without a launcher."
                )
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
    except (Exception, KeyboardInterrupt) as error:
        end = ending(error)
        if end.state == "crashed":
            raise
        if _debugging():
            traceback.print_exception(error)
        if end.exit_code != SIGPIPE_EXIT_CODE and not _first_process_says(error):
            _say(end.reason)
        raise typer.Exit(end.exit_code) from error


def _first_process_says(error: BaseException) -> bool:
    """Whether this is one of several processes and the first tells of the error: it was told of it, or has it too."""
    return launched().rank > 0 and (isinstance(error, ConfigError | PeerError) or was_told(error))


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


def _say(message: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        mark = "\033[1;31merror:\033[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else "error:"
        sys.stderr.write(f"{mark} {_harmless(message)}\n")


def _harmless(message: str) -> str:
    """A message without signs that a terminal would obey: names in it may come from anybody."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in message)


def _debugging() -> bool:
    return os.environ.get("VGPO_LITE_DEBUG", "") not in ("", "0")
