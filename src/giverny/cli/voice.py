"""How commands speak: to a person with rich, to a program with one JSON object per line. Errors are one clear sentence."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import click

from ..base.times import seconds as seconds

LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


class Voice:
    """Says things once, in the form that was asked for."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def event(self, kind: str, /, **values: Any) -> None:
        """A fact for programs; silent for persons."""
        if self.as_json:
            click.echo(json.dumps({"event": kind, **values}, ensure_ascii=False, default=str))

    def say(self, text: str) -> None:
        """A sentence for persons; silent for programs."""
        if not self.as_json:
            click.echo(text)

    def table(self, rows: list[dict[str, Any]], columns: list[str], title: str = "") -> None:
        """Rows for both: a table, or one JSON object each."""
        if self.as_json:
            for row in rows:
                self.event("row", **row)
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(*columns, title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*("" if row.get(c) is None else escape(str(row.get(c, ""))) for c in columns))
        Console(soft_wrap=False).print(table)

    @contextmanager
    def progress(self, text: str, total: float | None) -> Iterator[Callable[..., None]]:
        """A bar on standard error: yields move(done, text=..., total=...). total: None until it is known. For programs and
        log files a line now and then, on standard error as well."""
        if self.as_json or not sys.stderr.isatty():
            said = monotonic()

            def tell(done: float, **changes: Any) -> None:
                nonlocal said
                if monotonic() - said >= LINE_EVERY:
                    said = monotonic()
                    whole = changes.get("total", total)
                    click.echo(f"{changes.get('text', text)}: {done:,.0f}" + (f" of {whole:,.0f}" if whole else ""), err=True)

            yield tell
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())  # "?" for no total yet
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(text, total=total)
            yield lambda done, **changes: bar.update(
                task, completed=done, total=changes.get("total"), description=changes.get("text")
            )


def speaks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --json and a Voice, and turn errors a user can cause into a sentence and exit code 2."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON object per line instead of text.")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, **kwargs: Any) -> Any:
        from ..base.errors import InputError

        voice = Voice(as_json)
        try:
            return function(*args, voice=voice, **kwargs)
        except InputError as error:
            voice.event("error", wanted=error.wanted, given=error.given, remedy=error.remedy)
            if not as_json:
                click.echo(f"giverny: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            voice.event("stopped")
            if not as_json:
                click.echo("giverny: stopped", err=True)
            sys.exit(130)

    return wrapped
