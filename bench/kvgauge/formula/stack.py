"""The layers of a shape, equal ones together: a sum over a model is a sum over two or three terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from kvgauge.shapes.types import Attention, LayerShape, ModelShape

Counted = tuple[tuple[LayerShape, int], ...]


class ByIdentity:
    """A shape as a key by identity: hashing it by value would hash every layer on every call."""

    __slots__ = ("shape",)

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def __hash__(self) -> int:
        return id(self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.shape is other.shape


def counted(layers: Iterable[LayerShape]) -> Counted:
    """Each distinct layer once, in the order of its first, with how many there are."""
    return tuple(Counter(layers).items())


def distinct_layers(shape: ModelShape) -> Counted:
    """`counted` over the whole shape, remembered."""
    return _distinct(ByIdentity(shape))


@lru_cache(maxsize=256)
def _distinct(key: ByIdentity) -> Counted:
    return counted(key.shape.layers)


def attention_of(shape: ModelShape) -> Attention:
    """`shape.attention`, remembered."""
    return _attention(ByIdentity(shape))


@lru_cache(maxsize=256)
def _attention(key: ByIdentity) -> Attention:
    return key.shape.attention
