"""What the tests of the log auditor share: its logs, the shapes that they are of, the field's reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvgauge.audit.context import Options
from kvgauge.audit.judge import audit_log
from kvgauge.audit.types import Audit, Finding
from kvgauge.shapes.types import LayerShape, ModelShape, StatePart

LOGS = Path(__file__).parent / "logs_for_tests"
REPORTS = Path(__file__).parents[2] / "shared" / "field" / "reports.jsonl"


def shape_of(name: str, *layers: LayerShape) -> ModelShape:
    """A shape of those layers, its weights unknown."""
    return ModelShape(name, layers, 64, 100, None, None, "test")


def plain(layers: int, kv_heads: int, head_dim: int, name: str = "plain") -> ModelShape:
    """All layers full, as many query heads as KV heads."""
    layer = LayerShape("full", kv_heads, kv_heads, head_dim, head_dim)
    return shape_of(name, *(layer,) * layers)


_FULL = LayerShape("full", 64, 8, 64, 64)
GPT_OSS = shape_of("gpt-oss-120b", *(replace(_FULL, kind="sliding", window=128), _FULL) * 18)
_STATE = (StatePart("conv", 8192 * 4, 16), StatePart("recurrent", 32 * 128 * 128, 32))
GATED_DELTA = shape_of(
    "gated delta", *(*(LayerShape("linear", state=_STATE),) * 3, LayerShape("full", 16, 4, 256, 256)) * 8
)  # fmt: skip
MLA = shape_of("mla", *(LayerShape("mla", q_heads=128, latent_dim=512, rope_dim=64),) * 61)


def audited(log: str, shape: ModelShape, **options: Any) -> Audit:
    """The audit of one of the logs."""
    return audit_log(LOGS / log, shape, Options(**options))


def verdicts(audit: Audit) -> dict[str, str]:
    """`line:what` -> verdict."""
    return {f"{each.line}:{each.what}": each.verdict for each in audit.findings}


def finding(audit: Audit, what: str) -> Finding:
    """The first finding on that figure."""
    return next(each for each in audit.findings if each.what == what)


def reports() -> list[dict[str, Any]]:
    """The field's reports; empty where they do not stand beside the checkout."""
    if not REPORTS.exists():
        return []
    return [json.loads(line) for line in REPORTS.read_text().splitlines() if line.strip()]
