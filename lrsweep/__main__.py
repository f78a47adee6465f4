"""``python -m lrsweep``."""

from lrsweep.cli import main

main()
