"""Fields: a parsed config.json whose every value is checked where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvgauge.errors import UnsupportedLayout, UserError, short
from kvgauge.shapes.types import MAX_DIM

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object of one file; `where` names both in every message.

    `asked` are the names that the reader looked at: whatever else stands there it has not understood.
    `inner` are the objects in it that were asked for, `notes` the reader's remarks.
    """

    where: str
    values: Json
    asked: set[str] = field(default_factory=set, compare=False)
    inner: list[Fields] = field(default_factory=list, compare=False)
    notes: list[str] = field(default_factory=list, compare=False)

    def get(self, name: str) -> object:
        """The value as it stands there; None where it does not."""
        self.asked.add(name)
        return self.values.get(name)

    def understood(self, *names: str) -> None:
        """These fields say nothing here that the reader has to know."""
        self.asked.update(names)

    def nested(self, name: str) -> Fields | None:
        """The object that stands in this field; None where none does."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, found {short(value)}")
        inside = Fields(f"{self.where}: {name}", value, notes=self.notes)
        self.inner.append(inside)
        return inside

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.get(name) is not None

    def integer(
        self, name: str, *, low: int = 1, high: int = MAX_DIM, default: int | None = None
    ) -> int:
        """An integer in [low, high]; `default` where it is absent or null, if one is given."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.error(name, f"missing, must be an integer in [{low}, {high}]")
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(name, f"must be an integer, found {short(value)}")
        if not low <= value <= high:
            raise self.error(name, f"must be in [{low}, {high}], found {short(value)}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """A true or false; `default` where it is absent or null."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, found {short(value)}")
        return value

    def text(self, name: str) -> str:
        """A string, not empty."""
        value = self.get(name)
        if not isinstance(value, str) or not value:
            raise self.error(name, f"must be a string, found {short(value)}")
        return value

    def texts(self, name: str, length: int) -> list[str]:
        """A list of `length` strings."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, f"must be a list of strings, found {short(value)}")
        if len(value) != length:
            raise self.error(name, f"must have one entry a layer ({length}), found {len(value)}")
        return value

    def integers(self, name: str, length: int, *, low: int = 0) -> list[int]:
        """A list of `length` integers of at least `low`."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(name, f"must be a list of {length} integers, found {short(value)}")
        for item in value:
            if not isinstance(item, int) or isinstance(item, bool) or not low <= item <= MAX_DIM:
                raise self.error(
                    name, f"must hold integers in [{low}, {MAX_DIM}], found {short(item)}"
                )
        return value

    def layer_indices(self, name: str, layers: int) -> frozenset[int]:
        """A list of layer numbers in [0, layers); empty where it is absent or null."""
        value = self.get(name)
        if value is None:
            return frozenset()
        if not isinstance(value, list):
            raise self.error(name, f"must be a list of layer numbers, found {short(value)}")
        for item in value:
            if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < layers:
                raise self.error(name, f"must hold layers in [0, {layers}), found {short(item)}")
        return frozenset(value)

    def error(self, name: str, problem: str) -> UserError:
        """A UserError that names file and field."""
        return UserError(f"{self.where}: {name}: {problem}")

    def unsupported(self, name: str, hint: str) -> UnsupportedLayout:
        """An UnsupportedLayout for the field's value that names the file."""
        return UnsupportedLayout(name, self.values.get(name), f"{self.where}: {hint}")


def parse_fields(data: bytes, where: str) -> Fields:
    """The JSON object that `data` holds; UserError where it is not one."""
    try:
        # A few genuine files hold Infinity, in fields that are never asked for: it reads as a float.
        values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object_without_duplicates)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply for a model configuration") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} in line {error.lineno}") from None
    except ValueError as error:  # an integer of thousands of digits, or a duplicate name
        raise UserError(f"{where}: not JSON as expected: {short(str(error))}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: must hold one JSON object, found {short(values)}")
    return Fields(where, values)


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Of two values of one name each reader would take its own.
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        name = next(n for n, _ in pairs if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {name} stands twice in one object")
    return values
