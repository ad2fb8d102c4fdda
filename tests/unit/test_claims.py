"""The textbook's figures against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest

from faults.test_cli_faults import kvgauge
from kvgauge.formula.claim import Claim
from kvgauge.formula.claims import claims
from kvgauge.formula.claims_cost import generation_s, misrouted_cost, step_s
from kvgauge.formula.claims_memory import requests_on

TABLE = {claim.name: claim for claim in claims()}
TOKEN = 2 * 80 * 8 * 128 * 2  # K and V, layers, heads, head_dim, bytes


def near(claim: Claim, name: str, value: float) -> None:
    assert claim.figure(name) == pytest.approx(value, rel=1e-9), name


def test_the_verdicts() -> None:
    assert {name: claim.verdict for name, claim in TABLE.items()} == {
        "bytes a token": "exact",
        "a long trace against a chat": "rounded",
        "requests on an 80 GB card": "holds only if",
        "half the KV heads": "exact",
        "capped traces": "rounded",
        "a thinking budget": "holds only if",
        "the code comment on the cap": "wrong",
        "chats against reasoning requests": "holds only if",
        "a long chain's time": "lower bound",
        "thinking freed after </think>": "holds only if",
        "routing": "holds only if",
        "reinforcement learning": "outside the tool",
        "accuracy of prompting styles": "outside the tool",
    }


def test_bytes() -> None:
    assert TOKEN == 327_680
    near(TABLE["bytes a token"], "a token", 327_680)
    near(TABLE["a long trace against a chat"], "50,000 tokens", 16_384_000_000)
    near(TABLE["a long trace against a chat"], "500 tokens", 163_840_000)
    near(TABLE["a long trace against a chat"], "ratio", 100)
    near(TABLE["capped traces"], "10,000 tokens", 3_276_800_000)
    near(TABLE["capped traces"], "2,048 tokens", 671_088_640)
    near(TABLE["a thinking budget"], "1,024 tokens", 335_544_320)
    near(TABLE["the code comment on the cap"], "tokens in 26 MB", 80)
    near(TABLE["the code comment on the cap"], "those tokens", 26_214_400)


def test_requests_on_a_card() -> None:
    claim = TABLE["requests on an 80 GB card"]
    near(claim, "80e9 bytes, no weights", 4)  # 4.88
    near(claim, "80 GiB, no weights", 5)  # 5.24
    near(claim, "0.9 of 80e9 bytes, no weights", 4)  # 4.39
    near(claim, "fp16 weights", 141_107_412_992)  # 70,553,706,496 parameters
    near(claim, "fp16 weights on 1 card", 0)
    # 2 cards, fp8: (72e9 - 35.277e9) / 8.192e9 = 4.48; int4: (72e9 - 18.3e9) / 8.192e9 = 6.55
    near(claim, "fp8 weights on 2 cards", 4)
    near(claim, "int4 weights on 2 cards", 6)
    # 4 cards, fp16: (72e9 - 35.277e9) / 4.096e9 = 8.97
    assert requests_on("fp16", 4) == 8
    assert "fp8 weights on 2 cards (4)" in claim.sentence


def test_a_chain_is_longer_than_its_steps() -> None:
    claim = TABLE["a long chain's time"]
    # a step alone: 70.55e9 - 1.05e9 active parameters x 2 bytes / 4 cards / 3.35e12 bytes a second
    assert step_s(0, 1) == pytest.approx(139.006e9 / 4 / 3.35e12, rel=1e-3)
    # a token of depth adds 81,920 bytes a card
    assert step_s(1000, 1) - step_s(0, 1) == pytest.approx(1000 * 81_920 / 3.35e12)
    assert generation_s(50, 1) == pytest.approx(sum(step_s(depth, 1) for depth in range(50)))
    assert 50 < claim.figure("ratio at batch 1") < claim.figure("ratio at batch 32")
    assert claim.figure("ratio at batch 32") < claim.figure("ratio of the cache reads alone")
    near(claim, "ratio of the cache reads alone", 12_497_500 / 4_950)
    assert claim.standing == "computed, not measured"


def test_the_three_settings_of_freed_thinking() -> None:
    claim = TABLE["thinking freed after </think>"]
    near(claim, "peak, in every setting", 10_200 * TOKEN)
    near(claim, "at the separator: freed", 10_000 * TOKEN)
    near(claim, "at the separator: held while answering", 500 * TOKEN)
    near(claim, "at the separator: time saved in the answer", 300 * 10_000 * 81_920 / 3.35e12)
    near(claim, "at the end of the request: held while answering", 10_500 * TOKEN)
    near(claim, "at the end of the request: held after it", 0)
    near(claim, "at the next turn: held between turns", 10_500 * TOKEN)
    near(claim, "at the next turn: held once freed", 500 * TOKEN)
    assert 0 < claim.figure("at the next turn: answer prefilled again") < 0.1


def test_chats() -> None:
    claim = TABLE["chats against reasoning requests"]
    near(claim, "requests of 50,000 tokens", 2)
    near(claim, "tokens each of 5 requests", 20_000)


def test_routing() -> None:
    claim = TABLE["routing"]
    near(claim, "routed, always right", 85 + 100 + 250)
    near(claim, "saved, always right", 91.3)
    # 85,000 x (0.9 x 0.001 + 0.05 x 0.01 + 0.05 x 0.05) and so on
    near(claim, "routed, 90% right, the rest astray", 331.5 + 115.5 + 227.75)
    near(claim, "saved, 90% right, the rest astray", 86.505)
    near(claim, "routed, 90% right, the rest answered again", 435 + 500)
    assert misrouted_cost(1.0) == pytest.approx(435)


def test_the_command() -> None:
    done = kvgauge("claims", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["claims"]
    assert len(rows) == len(TABLE)
    assert all(row["sentence"] and row["verdict"] and row["text"] for row in rows)
    people = kvgauge("claims").stdout
    assert "16,384,000,000 bytes" in people
    assert "computed, not measured" in people
