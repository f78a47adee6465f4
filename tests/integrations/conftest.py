"""What the tests of all integrations share."""

from __future__ import annotations

from typing import Any

import pytest

from lrsweep.detect import DivergenceDetector


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float | None, float | None]]:
    """Fills with (step, loss, gradient norm) as the detector, which works as always, is given them."""
    seen: list[tuple[int, float | None, float | None]] = []
    update = DivergenceDetector.update

    def recording(self: DivergenceDetector, step: int, loss: Any, grad_norm: Any = None, signals: Any = None) -> Any:
        seen.append((step, loss, grad_norm))
        return update(self, step, loss, grad_norm, signals)

    monkeypatch.setattr(DivergenceDetector, "update", recording)
    return seen
