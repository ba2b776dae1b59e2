"""How the command ends when something goes wrong: one line on stderr, and an exit code that says whose fault it was."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from ..errors import FastllmError, UserError

USER, FAILURE, INTERRUPTED, CLOSED_PIPE = 2, 1, 130, 141

_debugging = False


def show_tracebacks(wanted: bool) -> bool:
    """From now on, if wanted."""
    global _debugging
    _debugging = _debugging or wanted
    return wanted


def guarded(run: Callable[[], int]) -> int:
    """The exit code of `run`, with every error reported as a person should see it."""
    global _debugging
    _debugging = False
    try:
        code = run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as request:
        return _closed() if isinstance(request.__context__, BrokenPipeError) else _code_of(request)
    except OSError as error:
        return _closed() if error.errno == errno.EPIPE else report(error)
    except Exception as error:
        return report(error)


def report(error: Exception) -> int:
    """Say what went wrong on stderr and return the exit code for it."""
    if _debugging:
        traceback.print_exception(error)
    if type(error).__name__ == "Abort":  # of the parser, which this module does not import
        return INTERRUPTED
    usage = getattr(error, "format_message", None)  # of the command-line parser
    if usage is not None:
        if not usage():  # a group alone: its help has been printed
            return USER
        context = getattr(error, "ctx", None)
        hint = f" (see: {context.command_path} --help)" if context else ""
        return _say(f"{usage()}{hint}", USER)
    if isinstance(error, FastllmError):
        return _say(str(error), USER if isinstance(error, UserError) else FAILURE)
    first = (str(error).splitlines() or [""])[0]
    hint = "" if _debugging else " (--debug shows where)"
    return _say(f"{type(error).__name__}: {first}{hint}", FAILURE)


def _say(message: str, code: int) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"error: {line}\n")
    return code


def _code_of(request: SystemExit) -> int:
    return request.code if isinstance(request.code, int) else 0 if request.code is None else FAILURE


def _closed() -> int:
    """Whoever read our output has left, as `head` does: be quiet, also when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE
