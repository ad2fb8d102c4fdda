"""flex-attention: that the compiled kernel runs, and nothing else unseen. The kernels are real, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels_for_tests import error, make_query, make_view, naive_decode, observed
from kvgauge_kernels import BACKENDS, flex_attention, flex_compile
from triton_for_tests import one_case

FLEX = BACKENDS["flex-attention"]
CPU = torch.device("cpu")


@pytest.fixture
def compiler() -> None:
    reason = FLEX.supports(make_view("fp32"), torch.float32)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def unproven() -> Iterator[None]:
    """What was found out about this machine is forgotten, before and after."""
    flex_attention._unproven.cache_clear()
    yield
    flex_attention._unproven.cache_clear()


def test_torch_takes_no_compiled_function_below_a_dispatch_mode_nor_after_it() -> None:
    """Why the backend is an operator; where this fails torch has changed, for the better."""
    ran = []

    def counted(graph: Any, _inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            ran.append(1)
            return graph(*args)

        return run

    def add_one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    one_more = torch.compile(add_one, backend=counted, dynamic=False)
    one_more(torch.ones(2))
    assert len(ran) == 1
    observed(lambda: one_more(torch.ones(2)))
    assert len(ran) == 1
    one_more(torch.ones(3))
    assert len(ran) == 1


def test_a_call_below_a_dispatch_mode_raises() -> None:
    rows, mask = torch.ones(1, 1, 1, 64), flex_attention._whole(1, 1, CPU)
    with pytest.raises(RuntimeError, match="below a TorchDispatchMode"):
        observed(lambda: flex_compile.run(rows, rows, rows, mask))


def test_the_operator_runs_the_compiled_kernel_cold_and_warm_and_no_operator_in_it(
    compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import compile_fx

    real, inside = compile_fx.compile_fx, []

    def looked_into(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled: Any = real(graph, inputs)

        def run(*args: Any) -> Any:
            out, seen = observed(lambda: compiled(*args))
            inside.append(seen)
            return out

        return run

    monkeypatch.setattr(compile_fx, "compile_fx", looked_into)
    view = make_view("fp32", tokens=72)
    q = make_query(view, 2, torch.float32)
    for _ in range(2):
        out, seen = observed(lambda: FLEX.decode(q, view))
        assert seen == {"kvgauge::flex_decode"}
        assert error(out, naive_decode(q, view)) < 1e-5
    assert inside == [set(), set()]


def test_a_call_that_runs_eager_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        flex_compile, "_compiled", lambda: lambda q, k, v, block_mask: eager(q, k, v)
    )
    view = make_view("fp32")
    with pytest.raises(RuntimeError, match="without a compiled kernel"):
        FLEX.decode(make_query(view, 2, torch.float32), view)


def test_a_graph_without_flex_attention_is_refused() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Identity())
    with pytest.raises(RuntimeError, match="holds no flex_attention"):
        flex_compile._counted(graph, [])


def test_what_does_not_compile_is_unsupported_with_the_compilers_words(
    unproven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("No working\n C++ compiler")

    monkeypatch.setattr(flex_compile, "_compiled", broken)
    said = str(FLEX.supports(make_view("fp32"), torch.float32))
    assert said.endswith("does not compile here: RuntimeError: No working C++ compiler")


def test_a_kernel_that_computes_something_else_is_unsupported(
    unproven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex_compile, "run", lambda rows, k, v, mask: 2 * rows)
    assert "something else" in str(FLEX.supports(make_view("fp32"), torch.float32))


def test_lengths_and_windows_are_data_and_shapes_have_no_limit(compiler: None) -> None:
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    view = make_view("fp32", tokens=300, lengths=(7, 300))
    q = make_query(view, 2, torch.float32)
    with config.patch(recompile_limit=1):
        FLEX.decode(q, view)
        graphs = counters["stats"]["unique_graphs"]
        for other in (
            replace(view, lengths=(299, 130)),
            replace(view, window=1),
            replace(view, window=2**40, sink_tokens=2**40),
            replace(view, lengths=None, window=140, sink_tokens=3),
        ):
            assert error(FLEX.decode(q, other), naive_decode(q, other)) < 1e-5
        assert counters["stats"]["unique_graphs"] == graphs
        longer = make_view("fp32", tokens=310, lengths=(7, 300))
        assert error(FLEX.decode(q, longer), naive_decode(q, longer)) < 1e-5


def test_hidden_blocks_are_not_read(compiler: None) -> None:
    view = replace(make_view("fp32", tokens=640), lengths=(500, 300), window=100, sink_tokens=4)
    q = make_query(view, 2, torch.float32)
    expected = naive_decode(q, view)
    for of in (view.k, view.v):
        # Seen: tokens 0 to 3, and 400 to 499 of one, 200 to 299 of the other.
        of[0, :, 128:384], of[0, :, 512:], of[1, :, 384:] = (float("nan"),) * 3
    assert error(FLEX.decode(q, view), expected) < 1e-5


def test_more_query_heads_than_a_block_has_rows(compiler: None) -> None:
    view = make_view("fp32", batch=1, kv_heads=1, tokens=200, lengths=(150,))
    for each in (view, replace(view, window=20, sink_tokens=1)):
        q = make_query(each, 130, torch.float32)
        assert error(FLEX.decode(q, each), naive_decode(q, each)) < 1e-5


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    view, paged = make_view("fp32"), replace(one_case(), page_size=16).view()
    assert "layout 'paged'" in str(FLEX.supports(paged, torch.float16))
    assert "format int8" in str(FLEX.supports(make_view("int8"), torch.float32))
    odd = replace(view, k=view.k[..., 1:33], v=view.v[..., :32])
    assert "multiple of 16 bytes" in str(FLEX.supports(odd, torch.float32))
    assert "not on meta" in str(FLEX.available(torch.device("meta")))
    with pytest.raises(ValueError, match="decodes only"):
        FLEX.prefill(make_query(view, 2, torch.float32, 3), view)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert "7.5" in str(FLEX.available(torch.device("cuda")))


def test_the_operator_knows_the_shape_of_its_result() -> None:
    view = make_view("bf16", k_dim=64, v_dim=32, device="meta")
    q = torch.empty(2, 4, 64, dtype=torch.bfloat16, device="meta")
    assert FLEX.decode(q, view).shape == (2, 4, 32)
