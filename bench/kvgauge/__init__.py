"""kvgauge: what a long thinking trace costs in KV-cache memory and decode speed."""

from kvgauge.api import compare, load_run, plan
from kvgauge.errors import NotComparable, UnsupportedLayout, UserError

__all__ = ["NotComparable", "UnsupportedLayout", "UserError", "compare", "load_run", "plan"]
