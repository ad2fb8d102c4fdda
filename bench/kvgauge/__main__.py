"""`python -m kvgauge`."""

from kvgauge.cli import main

main()
