"""How a command fails: with one sentence and an exit code, where the user can do something about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

errors = Console(stderr=True, highlight=False)


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what a user can cause into one sentence and exit code 1. Anything else is a bug and keeps its traceback."""
    from ring.answers import RingError

    try:
        yield
    except* (RingError, ValueError) as group:  # the errors that a user can meet are ValueErrors with a sentence
        for error in leaves(group):
            if isinstance(error, ValueError) and type(error).__module__ == "builtins":
                raise error from None
        fail(str(next(leaves(group))))


def leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    """The single exceptions of a group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def fail(sentence: str) -> NoReturn:
    """One sentence to standard error, exit code 1."""
    errors.print(f"[red]error:[/red] {escape(sentence)}", soft_wrap=True)
    raise typer.Exit(1)
