"""Benchmarks asked for a file of times are timed; otherwise each runs once, as a test of itself."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark_json", None):
        config.option.benchmark_disable = False
