"""Figures that follow from a pool of blocks: vLLM's tokens, blocks and concurrency, TensorRT-LLM's blocks.

vLLM cuts what is available into whole blocks: `blocks = available // block bytes`, `tokens = blocks *
block_size`, `concurrency = blocks / ceil(request / block_size)` (V0: `blocks * block_size / request`).
What is available is printed to two decimals, so that a count is expected within a range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from kvgauge.audit.context import Context, printed_range, usable_count
from kvgauge.audit.expect import Expectation, Judgeable, Missing, Predict
from kvgauge.audit.pools import pooled_token_bytes
from kvgauge.audit.sizes import Case, stateful, token_bytes, windowed
from kvgauge.audit.stored import Line
from kvgauge.audit.types import LogFact, Range, exactly
from kvgauge.errors import UserError
from kvgauge.formula.held import held_bytes

DEFAULT_BLOCK = 16
_RANGE_RULE = "within what the printed memory allows, which is rounded to its last decimal"
Maker = Callable[[LogFact, Line, Context], Judgeable | None]


def pool_figures(line: Line, context: Context) -> list[Judgeable]:
    """What a line says of a pool."""
    makers: tuple[tuple[str, Maker], ...] = (
        ("available_bytes", _available), ("needed_bytes", _needed), ("blocks", _blocks),
        ("tokens", _tokens), ("concurrency", _concurrency),
        ("blocks_per_request", _blocks_per_request), ("max_total_tokens", _max_total),
    )  # fmt: skip
    made = []
    for what, fact in line.items():
        for name, maker in makers:
            if what == name:
                found = _made(maker, fact, line, context)
                if found is not None:
                    made.append(found)
    return made


def _made(maker: Maker, fact: LogFact, line: Line, context: Context) -> Judgeable | None:
    try:
        return maker(fact, line, context)
    except UserError as error:  # a setting that cannot be: 3 ranks for 8 heads
        return Missing(fact, str(error))


def _available(fact: LogFact, line: Line, context: Context) -> Judgeable:  # noqa: ARG001
    number = fact.number
    if number is not None and number < 0:
        return Missing(fact, "negative: nothing is left for a cache beside weights and activations")
    return Missing(
        fact, "what is left depends on the card, the weights and the activations; taken as given"
    )


def _tokens(fact: LogFact, line: Line, context: Context) -> Judgeable | None:  # noqa: ARG001
    engine, count = fact.engine, usable_count(fact)
    if engine == "tensorrt-llm":
        blocks, size = context.last("blocks"), context.block_tokens
        if blocks is None or size is None or count is None:
            return None
        return Expectation(
            fact, exactly(count), context.case, lambda _: [exactly(blocks * size)],
            rule="equal to blocks x tokens per block", unit_bytes=None,
        )  # fmt: skip
    if engine != "vllm":
        return None  # SGLang's is what the sizes of the same line are recomputed from
    return _from_available(fact, context, context.block_tokens or DEFAULT_BLOCK, 1)


def _blocks(fact: LogFact, line: Line, context: Context) -> Judgeable | None:  # noqa: ARG001
    count = usable_count(fact)
    if fact.engine == "tensorrt-llm":
        tokens, size = context.last("tokens"), context.block_tokens
        if tokens is None or size is None or count is None:
            return Missing(fact, "needs the tokens of the pool and the tokens per block")
        return Expectation(
            fact, exactly(count), context.case, lambda _: [exactly(-(-tokens // size))],
            rule="equal to tokens / tokens per block, rounded up", unit_bytes=None,
        )  # fmt: skip
    if windowed(context.shape):
        return Missing(fact, "vLLM pools layers of several kinds: a block has no fixed tokens")
    return _from_available(
        fact, context, context.block_tokens or DEFAULT_BLOCK, context.block_tokens or DEFAULT_BLOCK
    )


def _from_available(fact: LogFact, context: Context, block: int, tokens_a_unit: int) -> Judgeable:
    count, memories = usable_count(fact), _memories(fact, context)
    if count is None:
        return Missing(fact, "not a whole number that a cache could have")
    if stateful(context.shape):
        return Missing(
            fact, "vLLM makes the pages of attention and state layers equal: not modelled"
        )
    if context.unknown_format is not None:
        return Missing(fact, f"KV format {context.unknown_format[:20]} is not known (--kv-format)")
    if not memories:
        return Missing(fact, "the log does not say how much memory is available for the cache")
    per_block = block // tokens_a_unit
    bounds = [(int(memory.low), int(memory.high)) for memory in memories]

    def counted(bytes_a_token: int) -> list[Range]:
        if not bytes_a_token:
            return []
        whole = block * bytes_a_token
        return [
            Range(Fraction(low // whole * per_block), Fraction(high // whole * per_block))
            for low, high in bounds
        ]

    def plain(case: Case) -> Sequence[Range]:
        return counted(token_bytes(case))

    def pooled(case: Case) -> Sequence[Range]:
        return counted(pooled_token_bytes(case) or 0)

    variants = (
        ("windows ignored: every layer keeps every token", plain),
        ("hybrid pages: layers pooled in groups of equal size, padded, each as if it kept all", pooled),
    )  # fmt: skip
    predict: Predict = plain
    length = context.last("max_tokens")
    if windowed(context.shape):
        if not length:
            return Missing(
                fact,
                "with windowed layers the tokens that fit depend on the length of the requests, and the "
                "log does not say max_seq_len" + _fitting(fact, variants, context.case),
            )
        predict = _at_length(length, memories)
    weight = Fraction(token_bytes(context.case) * tokens_a_unit)
    reason = "" if context.block_tokens else f"blocks of {block} tokens, as the log states none"
    return Expectation(
        fact, exactly(count), context.case, predict, rule=_RANGE_RULE, unit_bytes=weight, reason=reason,
        variants=variants if windowed(context.shape) else (), memories=memories,
    )  # fmt: skip


def _memories(fact: LogFact, context: Context) -> tuple[Range, ...]:
    """What was available on the ranks that the figure may be of; without those that had nothing."""
    printed = (printed_range(each) for each in context.beside(fact, "available_bytes"))
    return tuple(dict.fromkeys(found for found in printed if found and found.low >= 0))


def _fitting(fact: LogFact, variants: Sequence[tuple[str, Predict]], case: Case) -> str:
    count = usable_count(fact)
    fits = [
        text
        for text, predict in variants
        if count is not None and any(exactly(count).meets(found) for found in predict(case))
    ]
    return f"; a hypothesis that reproduces the number: {fits[0]}" if fits else ""


def _at_length(length: int, memories: Sequence[Range]) -> Predict:
    def predict(case: Case) -> Sequence[Range]:
        held = held_bytes(case.shape, length, case.storage(case.k_format))
        if not held:
            return []
        return [
            Range(Fraction(m.low * length // held), Fraction(m.high * length // held))
            for m in memories
        ]

    return predict


def _concurrency(fact: LogFact, line: Line, context: Context) -> Judgeable:
    logged, request = printed_range(fact), line.get("request_tokens")
    length = None if request is None else usable_count(request)
    if logged is None or not length:
        return Missing(fact, "its numbers are not such that a cache could have")
    if windowed(context.shape) or stateful(context.shape):
        return Missing(
            fact, "vLLM adds a step's batched tokens and a block to a window: the log does not say "
            "max_num_batched_tokens",
        )  # fmt: skip
    block = context.block_tokens or DEFAULT_BLOCK
    blocks = _counts(context.beside(fact, "blocks"))
    blocks = blocks or [n // block for n in _counts(context.beside(fact, "tokens"))]
    if not blocks:
        return Missing(fact, "the log says neither the blocks nor the tokens of the pool")
    per_request = -(-length // block)
    each = [
        exactly(ratio)
        for n in blocks
        for ratio in (Fraction(n, per_request), Fraction(n * block, length))
    ]
    return Expectation(
        fact, logged, context.case, lambda _: each,
        rule="blocks over the blocks of a request, to the logged decimals", unit_bytes=None,
    )  # fmt: skip


def _counts(facts: Sequence[LogFact]) -> list[int]:
    return [count for fact in facts if (count := usable_count(fact)) is not None]


def _needed(fact: LogFact, line: Line, context: Context) -> Judgeable:
    logged, request = printed_range(fact), line.get("request_tokens")
    length = None if request is None else usable_count(request)
    if logged is None or not length:
        return Missing(fact, "its numbers are not such that a cache could have")
    if windowed(context.shape) or stateful(context.shape):
        return Missing(
            fact, "layers of several kinds are pooled: a request's share is not modelled"
        )
    if context.unknown_format is not None:
        return Missing(fact, f"KV format {context.unknown_format[:20]} is not known (--kv-format)")
    block = context.block_tokens or DEFAULT_BLOCK
    tokens = -(-length // block) * block
    return Expectation(
        fact, logged, context.case, lambda case: [exactly(tokens * token_bytes(case))],
        rule="the computed bytes print as the logged figure does, to its last decimal",
    )  # fmt: skip


def _blocks_per_request(fact: LogFact, line: Line, context: Context) -> Judgeable:  # noqa: ARG001
    count, size, length = usable_count(fact), context.block_tokens, context.last("max_tokens")
    if count is None or not size or not length:
        return Missing(fact, "needs the longest sequence (max_seq_len) and the tokens per block")
    return Expectation(
        fact, exactly(count), context.case, lambda _: [exactly(-(-length // size))],
        rule="equal to the longest sequence / tokens per block, rounded up", unit_bytes=None,
    )  # fmt: skip


def _max_total(fact: LogFact, line: Line, context: Context) -> Judgeable:  # noqa: ARG001
    count, tokens = usable_count(fact), context.counts("tokens")
    if count is None or not tokens:
        return Missing(fact, "the log does not say how many tokens were allocated")
    return Expectation(
        fact, exactly(count), context.case, lambda _: [exactly(n) for n in tokens],
        rule="equal to the allocated tokens", unit_bytes=None,
    )  # fmt: skip
