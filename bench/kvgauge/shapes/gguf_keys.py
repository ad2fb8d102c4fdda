"""Keys: the metadata of one architecture in a .gguf file, checked where it is asked for."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from kvgauge.errors import UnsupportedLayout, UserError, short
from kvgauge.shapes.gguf_header import Header
from kvgauge.shapes.guard import bears_on_layout
from kvgauge.shapes.types import MAX_DIM


class Keys:
    """The keys of one architecture, checked where they are asked for."""

    def __init__(self, header: Header, arch: str) -> None:
        self.header = header
        self.arch = arch

    def integer(self, key: str, *, high: int = MAX_DIM, default: int | None = None) -> int:
        """An integer in [1, high]; `default` where the key is absent, if one is given."""
        value = self.header.metadata.get(f"{self.arch}.{key}", default)
        return self._checked(key, value, high)

    def states(self, key: str) -> bool:
        """Whether the key is there."""
        return f"{self.arch}.{key}" in self.header.metadata

    def per_layer(self, key: str, layers: int, default: int) -> list[int]:
        """One integer a layer, written as one number or as a list."""
        value = self.header.metadata.get(f"{self.arch}.{key}", default)
        if not isinstance(value, tuple):
            return [self._checked(key, value, MAX_DIM)] * layers
        if len(value) != layers:
            raise self.error(key, f"must have one entry a layer ({layers}), found {len(value)}")
        return [self._checked(key, item, MAX_DIM) for item in value]

    def refuse_unknown_layout(self, understood: AbstractSet[str]) -> None:
        """Raise UnsupportedLayout for a key that may bear on layout and is not understood."""
        prefix = f"{self.arch}."
        for full, value in self.header.metadata.items():
            key = full.removeprefix(prefix)
            if not full.startswith(prefix) or key in understood or not value:
                continue
            if bears_on_layout(key):
                hint = f"{self.header.where}: this key is not understood"
                raise UnsupportedLayout(full, value, hint)

    def get(self, key: str) -> object:
        """The value as it stands there; None where it does not."""
        return self.header.metadata.get(f"{self.arch}.{key}")

    def unsupported(self, key: str, hint: str) -> UnsupportedLayout:
        """An UnsupportedLayout for the key's value that names the file."""
        return UnsupportedLayout(
            f"{self.arch}.{key}", self.get(key), f"{self.header.where}: {hint}"
        )

    def error(self, key: str, problem: str) -> UserError:
        """A UserError that names file and key."""
        return UserError(f"{self.header.where}: {self.arch}.{key}: {problem}")

    def located(self, error: UserError) -> UserError:
        """The error with the file's name in it."""
        text = str(error)
        named = self.header.where in text
        return error if named else UserError(f"{self.header.where}: {text}")

    def _checked(self, key: str, value: object, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
            found = "nothing" if value is None else short(value)
            raise self.error(key, f"must be an integer in [1, {high}], found {found}")
        return value
