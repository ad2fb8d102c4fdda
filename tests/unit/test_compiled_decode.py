"""decode in a torch.compile without breaks of the graph, by the kernels' operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kernels_for_tests import make_query, make_view
from kvgauge_kernels import BACKENDS, KVView, decode

FORMATS = ["bf16", "int8", "fp8_e4m3", "int4", "int2-g32"]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """No limit of recompilations carries over to another test."""
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["cpu", "cpu-q8", "dequant+sdpa", "reference"])
def test_one_graph(name: str, fmt: str) -> None:
    view = make_view(fmt, lengths=(40, 17))
    q = make_query(view, 4, torch.bfloat16)
    reason = BACKENDS[name].available(q.device) or BACKENDS[name].supports(view, q.dtype)
    if reason is not None:
        pytest.skip(reason)
    compiled_and_eager(q, view, name)


def test_a_refusal_is_the_same_when_compiled() -> None:
    view = make_view("int8")
    q = make_query(view, 4, torch.bfloat16)
    step = torch.compile(lambda q: decode(q, view, "eager"), backend="eager")
    with pytest.raises(ValueError, match="format int8"):
        step(q)


def compiled_and_eager(q: torch.Tensor, view: KVView, name: str) -> None:
    """Of tensors that go in, so that nothing of the cache is a constant."""
    sides: dict[str, Any] = {n: x for n, x in view.tensors().items() if n not in ("k", "v")}

    def step(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sides: dict[str, Any]
    ) -> torch.Tensor:
        return decode(q, KVView(k, v, view.format, lengths=view.lengths, **sides), name)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = decode(q, view, name)
    assert torch.equal(compiled(q, view.k, view.v, sides), expected)
