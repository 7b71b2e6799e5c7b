"""What the value of an option means: parsed by the module that knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pbs_policy.duration import parse_duration
from pbs_policy.table.permits import parse_text


def parsed_by(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback of click that has an option's value, or each of them, parsed; the ValueError becomes click's."""

    def callback(_context: click.Context, parameter: click.Parameter, given: Any) -> Any:
        if given is None:
            return None
        try:
            return tuple(map(parse, given)) if isinstance(given, tuple) else parse(given)
        except ValueError as error:
            raise click.BadParameter(str(error), param=parameter) from None

    return callback


DURATION = parsed_by(parse_duration)
TEXT = parsed_by(parse_text)
