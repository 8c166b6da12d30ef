"""/metrics, /openapi.json and /docs."""

from __future__ import annotations

import asyncio
import re

from prometheus_client.parser import text_string_to_metric_families

from ring.gateway.metrics import Metrics
from ring.gateway.openapi import describe
from ring.gateway.page import page
from ring.wire.clients import Lap, LapHop
from tests.gateway.fakes import gateway, status


def figures(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a page, by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_laps_become_histograms_of_each_stage() -> None:
    metrics = Metrics()
    for compute in (1_500_000, 1_500_000, 40_000_000, 9_000_000_000):
        metrics.laps.add(
            Lap(1, 1, 1, 0, compute + 6000, [LapHop(0, 1000, compute, 2000, 3000, 10), LapHop(1, 0, 0, 0, 0, 5)], [])
        )
    shown = figures(metrics.render(status()).decode())

    def bucket(le: str) -> float:
        return shown["ring_stage_seconds_bucket", (("le", le), ("part", "compute"), ("stage", "0"))]

    assert [bucket(le) for le in ("0.001", "0.002", "0.05", "5.0", "+Inf")] == [0, 2, 3, 3, 4]
    assert shown["ring_stage_seconds_sum", (("part", "compute"), ("stage", "0"))] == 9.043
    assert shown["ring_stage_seconds_count", (("part", "wire"), ("stage", "1"))] == 4
    assert shown["ring_lap_seconds_count", ()] == 4
    assert shown["ring_stage_received_bytes_total", (("stage", "0"),)] == 40


def test_the_page_of_metrics() -> None:
    async def run() -> None:
        async with gateway() as fixture:
            await fixture.post("/generate", prompt="x")
            await fixture.http.get("/nothing/secret")
            response = await fixture.http.get("/metrics")
            shown = figures(response.text)
            assert all(name.startswith("ring_") for name, _ in shown)
            assert shown["ring_up", ()] == 1
            assert shown["ring_generated_tokens_total", ()] == 3
            assert shown["ring_prompt_tokens_total", ()] == 3
            assert shown["ring_http_requests_total", (("path", "/generate"), ("status", "200"))] == 1
            assert shown["ring_http_requests_total", (("path", "other"), ("status", "404"))] == 1
            assert shown["ring_time_to_first_token_seconds_count", ()] == 1
            assert shown["ring_http_requests_in_progress", ()] == 1  # this one
            assert "secret" not in response.text

    asyncio.run(run())


def test_without_a_head_the_ring_is_not_up() -> None:
    shown = figures(Metrics().render(None).decode())
    assert shown["ring_up", ()] == 0
    assert ("ring_kv_tokens", ()) not in shown


def test_the_description_names_every_path_of_the_application() -> None:
    async def run() -> None:
        async with gateway() as fixture:
            served = (await fixture.http.get("/openapi.json")).json()
            assert served == describe()
            routes = {route.path.replace(":path", "") for route in fixture.app.routes}  # type: ignore[attr-defined]
            assert routes == set(served["paths"])
            known = set(served["components"]["schemas"])
            assert set(re.findall(r"#/components/schemas/(\w+)", str(served))) <= known

    asyncio.run(run())


def test_the_docs_need_nothing_from_elsewhere() -> None:
    html = page(describe())
    assert all(path in html for path in describe()["paths"])
    assert not re.search(r"(src|href)=.?https?:", html)
    assert "<script" not in html
