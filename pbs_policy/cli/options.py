"""What the value of an option means: parsed by the module that knows, loaded when there is a value."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

import click


def parsed_by(place: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback of click that has an option's value, or each of them, parsed by `place`, `MODULE:FUNCTION`
    of this package; the ValueError becomes click's."""

    def callback(_context: click.Context, parameter: click.Parameter, given: Any) -> Any:
        if given is None:
            return None
        module, _, function = place.partition(":")
        parse = attrgetter(function)(import_module(f"pbs_policy.{module}"))
        try:
            return tuple(map(parse, given)) if isinstance(given, tuple) else parse(given)
        except ValueError as error:
            raise click.BadParameter(str(error), param=parameter) from None

    return callback


DURATION = parsed_by("duration:parse_duration")
TEXT = parsed_by("table.permits:parse_text")
