"""The textbook's claims on memory: bytes a token, bytes a request, requests a card."""

from __future__ import annotations

from dataclasses import replace

from kvgauge.formula.capacity import available_bytes, max_requests
from kvgauge.formula.claim import (
    FP16,
    ROUNDED_TOKEN_BYTES,
    Claim,
    Figure,
    cache_bytes,
    text_model,
    token_cost,
    verdict_on_bytes,
    worst,
)
from kvgauge.formula.hardware import gpu_named
from kvgauge.formula.held import growth_bytes, held_bytes
from kvgauge.formula.weights import WEIGHT_FORMATS
from kvgauge.units import GB, GIB, decimal_bytes

_MB = 10**6
_DEEP, _CHAT = 50_000, 500  # the text's reasoning request and chat, in tokens
_CARD = "A100-SXM-80GB"
_UTILIZATION = 0.9
_RANKS = (1, 2, 4, 8)
_SEARCHED = ("fp16", "fp8", "int4")


def memory_claims() -> tuple[Claim, ...]:
    """In the text's order."""
    return (
        _token(), _requests(), _card(), _heads(), _caps(), _cap_1024(), _code_comment(), _chats(),
    )  # fmt: skip


def _token() -> Claim:
    stated, computed = 327_680, token_cost()
    return Claim(
        "bytes a token",
        "80 layers, 8 KV heads, head_dim 128, fp16: 327,680 bytes a token, 'about 320 KB'",
        "exact" if stated == computed else "wrong",
        (Figure("a token", stated, "bytes"),),
        (Figure("a token", computed, "bytes"),),
        f"It is {computed / 2**10:g} KiB; the text goes on with 320 KB taken as {ROUNDED_TOKEN_BYTES:,} "
        f"bytes; the formula has {100 * (computed / ROUNDED_TOKEN_BYTES - 1):.1f}% more.",
    )


def _requests() -> Claim:
    deep, chat = cache_bytes(_DEEP), cache_bytes(_CHAT)
    verdicts = [verdict_on_bytes(16 * GB, GB, _DEEP), verdict_on_bytes(160 * _MB, 10 * _MB, _CHAT)]
    return Claim(
        "a long trace against a chat",
        "50,000 thinking tokens: 16 GB; a 500-token chat: 160 MB, 100x less",
        worst(verdicts),
        (
            Figure("50,000 tokens", 16 * GB, "bytes"),
            Figure("500 tokens", 160 * _MB, "bytes"),
            Figure("ratio", 100, "x"),
        ),
        (
            Figure("50,000 tokens", deep, "bytes"),
            Figure("500 tokens", chat, "bytes"),
            Figure("ratio", deep / chat, "x"),
        ),
        f"{deep / GB:.3f} GB ({deep / GIB:.2f} GiB) and {chat / _MB:.2f} MB, "
        f"{100 * (deep / (16 * GB) - 1):.1f}% more than the text has from its rounding; the ratio is exact.",
    )


def _card() -> Claim:
    request, card = cache_bytes(_DEEP), gpu_named(_CARD).memory_bytes
    weights = _weight_bytes("fp16")
    found = {(fmt, ranks): requests_on(fmt, ranks) for fmt in _SEARCHED for ranks in _RANKS}
    closest = min(abs(count - 5) for count in found.values())
    nearest = " and ".join(
        f"{fmt} weights on {ranks} cards ({count})"
        for (fmt, ranks), count in found.items()
        if abs(count - 5) == closest
    )
    cards = next(n for n in _RANKS if found["fp16", n] >= 5)
    least = [
        Figure(f"{fmt} weights on {ranks} card{'s' * (ranks > 1)}", found[fmt, ranks], "requests")
        for fmt in _SEARCHED
        for ranks in _RANKS[:3]
    ]
    return Claim(
        "requests on an 80 GB card",
        "an 80 GB A100 serves roughly 5 concurrent requests of this depth",
        "holds only if",
        (Figure("requests", 5, "requests"),),
        (
            Figure("80e9 bytes, no weights", card // request, "requests"),
            Figure("80 GiB, no weights", 80 * GIB // request, "requests"),
            Figure(
                "0.9 of 80e9 bytes, no weights",
                available_bytes(card, 0, _UTILIZATION) // request,
                "requests",
            ),
            Figure("fp16 weights", weights, "bytes"),
            *least,
        ),
        "80 GB is read as 80 GiB and no weights are on the card: beside the fp16 weights of "
        f"{decimal_bytes(weights)} one card holds {found['fp16', 1]}. With weights, at {_UTILIZATION} "
        f"utilization, the nearest to 5: {nearest}; fp16 weights reach 5 from {cards} cards on "
        f"({found['fp16', cards]}).",
    )


def requests_on(weight_format: str, ranks: int) -> int:
    """Requests of the text's depth that a tensor-parallel group of the text's card holds."""
    storage = replace(FP16, tensor_parallel=ranks)
    weights = -(-_weight_bytes(weight_format) // ranks)
    free = available_bytes(gpu_named(_CARD).memory_bytes, weights, _UTILIZATION)
    return max_requests(free, held_bytes(text_model(), _DEEP, storage)) or 0


def _weight_bytes(name: str) -> int:
    return WEIGHT_FORMATS[name].bytes_of(text_model().params_total or 0)


def _heads() -> Claim:
    shape = text_model()
    halved = replace(shape, layers=tuple(replace(x, kv_heads=4) for x in shape.layers))
    ratio = growth_bytes(halved, 0, FP16) / token_cost()
    return Claim(
        "half the KV heads",
        "4 KV heads instead of 8 halve it",
        "exact" if ratio == 0.5 else "wrong",
        (Figure("of the bytes", 0.5, "x"),),
        (Figure("of the bytes", ratio, "x"),),
        "The bytes are proportional to the KV heads; query heads cost nothing here.",
    )


def _caps() -> Claim:
    sizes = {tokens: cache_bytes(tokens) for tokens in (10_000, 2_048)}
    verdicts = [
        verdict_on_bytes(3.2 * GB, 0.1 * GB, 10_000),
        verdict_on_bytes(655 * _MB, _MB, 2_048),
    ]
    return Claim(
        "capped traces",
        "10,000 thinking tokens: 3.2 GB; 2,048: 655 MB",
        worst(verdicts),
        (
            Figure("10,000 tokens", 3.2 * GB, "bytes"),
            Figure("2,048 tokens", 655 * _MB, "bytes"),
        ),
        tuple(Figure(f"{tokens:,} tokens", size, "bytes") for tokens, size in sizes.items()),
        f"{sizes[10_000] / GB:.4f} GB and {sizes[2_048] / _MB:.2f} MB; low from the same rounding.",
    )


def _cap_1024() -> Claim:
    size = cache_bytes(1_024)
    return Claim(
        "a thinking budget",
        "thinking_tokens=1024 caps the growth",
        "holds only if",
        (Figure("cap", 1_024, "tokens"),),
        (Figure("1,024 tokens", size, "bytes"),),
        f"the prompt and the answer are counted apart: the thinking then holds at most "
        f"{size / _MB:.1f} MB, and they go on growing by {token_cost():,} bytes a token.",
    )


def _code_comment() -> Claim:
    capped, tokens = cache_bytes(2_048), -(-26 * _MB // token_cost())
    return Claim(
        "the code comment on the cap",
        "the 2,048 cap 'reduces memory from ~640 MB to ~26 MB'",
        verdict_on_bytes(26 * _MB, _MB, 2_048),
        (Figure("at the cap", 26 * _MB, "bytes"), Figure("before", 640 * _MB, "bytes")),
        (
            Figure("2,048 tokens", capped, "bytes"),
            Figure("tokens in 26 MB", tokens, "tokens"),
            Figure("those tokens", cache_bytes(tokens), "bytes"),
        ),
        f"It contradicts the line below it: {cache_bytes(tokens) / _MB:.1f} MB is {tokens} tokens; 2,048 "
        f"hold {capped / _MB:.2f} MB ({capped / 2**20:g} MiB), which is the figure it gives as before.",
    )


def _chats() -> Claim:
    pool = 200 * cache_bytes(_CHAT)
    deep = pool // cache_bytes(_DEEP)
    shorter = pool // 5 // token_cost()
    return Claim(
        "chats against reasoning requests",
        "200 concurrent chats become 2 to 5 reasoning requests",
        "holds only if",
        (Figure("fewest", 2, "requests"), Figure("most", 5, "requests")),
        (
            Figure("200 chats", pool, "bytes"),
            Figure("requests of 50,000 tokens", deep, "requests"),
            Figure("tokens each of 5 requests", shorter, "tokens"),
        ),
        f"the requests are {shorter:,} to {_DEEP:,} tokens deep: the memory of 200 chats of {_CHAT} tokens "
        f"holds {deep} of {_DEEP:,}, and 5 of {shorter:,}. A ratio of capacity, not of speed.",
        "computed, not measured",
    )
