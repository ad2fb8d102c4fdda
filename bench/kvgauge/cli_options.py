"""Options that several commands have, said in one way."""

from __future__ import annotations

from typing import Any

import typer

from kvgauge.errors import UserError
from kvgauge.traces.axis import parse_count


def tokens(text: str) -> Any:
    """An option of tokens, or of several where its parameter is a list: `500`, or `8k` of 1,024."""

    def parse(said: object) -> int:
        try:
            return parse_count(str(said))
        except UserError as error:
            raise typer.BadParameter(str(error)) from None

    return typer.Option(help=text, parser=parse, metavar="N")
