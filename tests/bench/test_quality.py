"""What a dtype costs in quality is measured on text that the pocket model was not trained on."""

from __future__ import annotations

from ring.bench.quality import quality


def test_quality() -> None:
    seen: list[int] = []
    exact, int8 = quality(["float32", "int8"], 512, seen.append)
    assert sum(seen) == 4
    assert exact.tokens == int8.tokens == 512
    assert exact.divergence == 0.0 and exact.agreement == 1.0
    assert 5 < exact.perplexity < 60
    assert abs(int8.perplexity / exact.perplexity - 1) < 0.03
    assert 0 < int8.divergence < 0.01 and int8.agreement > 0.95
    assert int8.bytes < 0.4 * exact.bytes
