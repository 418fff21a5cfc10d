"""The label of a token that nothing is learnt of: in files as ModelLink has it, and in batches. Free of torch."""

from __future__ import annotations

from typing import Final

IGNORED: Final = -100
"""No loss is taken where this is the label."""
