"""The textbook's claims on time and money: long chains, freed thinking, routing.

Times are rooflines of one decode step of the whole stack on a stated card; a step's time grows linearly
with the depth (each operation is bound by the same thing at every depth), so that the sum over steps is
the number of steps times the mean of the first and the last: exact, not an approximation.
"""

from __future__ import annotations

from dataclasses import replace

from kvgauge.formula.claim import FP16, Claim, Figure, cache_bytes, text_model
from kvgauge.formula.floor import datasheet_rates, floor_s
from kvgauge.formula.hardware import gpu_named
from kvgauge.formula.moved import step_operations
from kvgauge.formula.prefill import prefill_operations
from kvgauge.formula.weights import WEIGHT_FORMATS
from kvgauge.units import decimal_bytes, seconds

_CARD, _RANKS = "H100-SXM", 4  # four of them hold the fp16 weights and room for a cache
_BATCHES = (1, 32)
_LONG, _SHORT = 5_000, 100  # the text's chain and response, in tokens
_PROMPT, _THINK, _ANSWER = 200, 10_000, 300  # the conversation that the settings are computed on
_WEIGHTS = WEIGHT_FORMATS["fp16"]
_SHARES = ((85_000, 0.001), (10_000, 0.01), (5_000, 0.05))  # queries a day, $ each
_ACCURACY = 0.9


def cost_claims() -> tuple[Claim, ...]:
    """In the text's order."""
    return (_chain(), _separator(), _routing())


def step_s(depth: int, batch: int) -> float:
    """The floor of one step of the text's model at a depth, on the stated cards."""
    storage = replace(FP16, tensor_parallel=_RANKS)
    operations = step_operations(text_model(), depth, storage, batch, _WEIGHTS)
    return floor_s(operations, datasheet_rates(gpu_named(_CARD)))


def generation_s(tokens: int, batch: int, start: int = 0) -> float:
    """`tokens` steps from a depth of `start`."""
    return tokens * (step_s(start, batch) + step_s(start + tokens - 1, batch)) / 2


def _chain() -> Claim:
    stated = _LONG / _SHORT
    ratios = {batch: generation_s(_LONG, batch) / generation_s(_SHORT, batch) for batch in _BATCHES}
    attention = (_LONG * (_LONG - 1)) / (_SHORT * (_SHORT - 1))
    low, high = (ratios[batch] for batch in _BATCHES)
    return Claim(
        "a long chain's time",
        "a 5,000-token chain takes 50x longer than a 100-token response",
        "lower bound" if low >= stated else "wrong",
        (Figure("ratio", stated, "x"),),
        (
            *(Figure(f"ratio at batch {batch}", ratio, "x") for batch, ratio in ratios.items()),
            Figure("ratio of the cache reads alone", attention, "x"),
        ),
        f"50x counts steps; each also reads a longer cache. By the roofline of {_RANKS} {_CARD} with fp16 "
        f"weights it is {low:.1f}x alone and {high:.1f}x in a batch of {_BATCHES[-1]}, where the weights "
        f"are shared and the caches are not.",
        "computed, not measured",
    )


def _separator() -> Claim:
    whole, answer_alone = _PROMPT + _THINK + _ANSWER, _PROMPT + _ANSWER
    freed = cache_bytes(_THINK)
    kept_s = generation_s(_ANSWER, 1, _PROMPT + _THINK)
    freed_s = generation_s(_ANSWER, 1, _PROMPT)
    storage = replace(FP16, tensor_parallel=_RANKS)
    again_s = floor_s(
        prefill_operations(text_model(), _ANSWER, storage, 1, _WEIGHTS),
        datasheet_rates(gpu_named(_CARD)),
    )
    return Claim(
        "thinking freed after </think>",
        "thinking entries can be freed after the separator; 'not possible during generation, but between "
        "requests'",
        "holds only if",
        (),
        (
            Figure("peak, in every setting", cache_bytes(_PROMPT + _THINK), "bytes"),
            Figure("at the separator: held while answering", cache_bytes(answer_alone), "bytes"),
            Figure("at the separator: freed", freed, "bytes"),
            Figure("at the separator: time saved in the answer", kept_s - freed_s, "s"),
            Figure("at the end of the request: held while answering", cache_bytes(whole), "bytes"),
            Figure("at the end of the request: held after it", 0, "bytes"),
            Figure("at the next turn: held between turns", cache_bytes(whole), "bytes"),
            Figure("at the next turn: held once freed", cache_bytes(answer_alone), "bytes"),
            Figure("at the next turn: answer prefilled again", again_s, "s"),
        ),
        f"it is said when. At {_PROMPT} prompt, {_THINK:,} thinking and {_ANSWER} answer tokens: freed at "
        f"the separator {decimal_bytes(freed)} go while the answer is written, which then cannot attend to "
        "the thinking (quality to be measured); freed at the end of the request nothing is lost and "
        "nothing is saved before; freed at the next turn the answer is prefilled again, as its entries "
        f"were made beside the thinking ({seconds(again_s)} on {_RANKS} {_CARD}).",
        "computed, not measured",
    )


def _routing() -> Claim:
    queries = sum(count for count, _ in _SHARES)
    dearest = max(price for _, price in _SHARES)
    routed, unrouted = sum(count * price for count, price in _SHARES), queries * dearest
    astray, retried = misrouted_cost(), routed + (1 - _ACCURACY) * queries * dearest
    exact = round(routed, 6) == 435 and round(unrouted, 6) == 5000
    saved = {name: 100 * (1 - cost / unrouted) for name, cost in
             (("right", routed), ("astray", astray), ("retried", retried))}  # fmt: skip
    return Claim(
        "routing",
        "routing 85K/10K/5K queries at $0.001/$0.01/$0.05: $435 a day against $5,000, 91% saved",
        "holds only if" if exact else "wrong",
        (Figure("routed", 435, "$"), Figure("unrouted", 5000, "$"), Figure("saved", 91, "%")),
        (
            Figure("routed, always right", routed, "$"),
            Figure("all at the dearest", unrouted, "$"),
            Figure("saved, always right", saved["right"], "%"),
            Figure("routed, 90% right, the rest astray", astray, "$"),
            Figure("saved, 90% right, the rest astray", saved["astray"], "%"),
            Figure("routed, 90% right, the rest answered again", retried, "$"),
            Figure("saved, 90% right, the rest answered again", saved["retried"], "%"),
        ),
        f"all {queries:,} queries cost ${dearest} unrouted and the router is always right. With the stated "
        f"90% accuracy it is {saved['astray']:.1f}% (${astray:,.2f}) if a wrong query goes to either other "
        f"tier alike, and {saved['retried']:.1f}% (${retried:,.2f}) if it is noticed and answered again "
        "by the dearest tier.",
    )


def misrouted_cost(accuracy: float = _ACCURACY) -> float:
    """Dollars a day where a wrong query goes to each of the other tiers alike."""
    prices = [price for _, price in _SHARES]
    wrong = (1 - accuracy) / (len(prices) - 1)
    return sum(
        count * (accuracy * price + wrong * (sum(prices) - price)) for count, price in _SHARES
    )
