"""Keys, names and origins: who may use the gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvicorn

from ring.gateway import serve
from ring.gateway.app import Access
from ring.gateway.auth import KeyFileError, digest, is_loopback, read_keys
from ring.gateway.serve import PatientProtocol, ServeError, ServeOptions, listen, run_serve
from tests.gateway.fakes import gateway

KEY = "a-long-enough-secret"


def test_keys_open_what_is_closed() -> None:
    async def run() -> None:
        async with gateway(access=Access([digest(b"another-long-secret"), digest(KEY.encode())], local_only=False)) as fixture:
            for path in ("/health", "/ready", "/docs", "/openapi.json"):
                assert (await fixture.http.get(path)).status_code == 200
            for header in (None, KEY, f"Basic {KEY}", "Bearer wrong", "Bearer", "Bearer \xe9", f"Bearer {KEY}x"):
                raw = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
                for path in ("/metrics", "/v1/models", "/nothing"):
                    response = await fixture.http.get(path, headers=raw)
                    assert response.status_code == 401, header
                    assert response.json()["error"]["code"] == "invalid_api_key"
                    assert response.headers["www-authenticate"] == "Bearer"
            assert fixture.ring.asked == []
            for header in (f"Bearer {KEY}", f"bearer  {KEY}", "Bearer another-long-secret"):
                assert (await fixture.http.get("/v1/models", headers={"Authorization": header})).status_code == 200

    asyncio.run(run())


def test_the_key_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# for the laptop\n{KEY}\n\n  another-long-secret \n")
    assert read_keys(file) == [digest(KEY.encode()), digest(b"another-long-secret")]
    for text, words in (("# nothing\n", "holds no key"), ("short\n", "less than 16")):
        file.write_text(text)
        with pytest.raises(KeyFileError, match=words):
            read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="cannot be read: not text"):
        read_keys(file)
    with pytest.raises(KeyFileError, match="No such file"):
        read_keys(tmp_path / "none")


def test_without_a_key_only_loopback_names_are_served() -> None:
    async def run() -> None:
        async with gateway() as fixture:
            for name in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
                assert (await fixture.http.get("/health", headers={"Host": name})).status_code == 200
            for name in ("evil.example", "evil.example:8000", "localhost.evil.example", "[::2]", "[::1"):
                response = await fixture.http.get("/health", headers={"Host": name})
                assert response.status_code == 403, name

    asyncio.run(run())


def test_cors_is_off_unless_asked_for() -> None:
    async def run() -> None:
        origin = {"Origin": "https://app.example"}
        preflight = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        async with gateway() as fixture:
            response = await fixture.http.options("/generate", headers=preflight)
            assert response.status_code == 405
            assert "access-control-allow-origin" not in (await fixture.http.get("/health", headers=origin)).headers
        async with gateway(access=Access(origins=["https://app.example"])) as fixture:
            response = await fixture.http.options("/generate", headers=preflight)
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "https://app.example")
            other = preflight | {"Origin": "https://other.example"}
            assert "access-control-allow-origin" not in (await fixture.http.options("/generate", headers=other)).headers

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x", False)],
)
def test_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_other_machines_are_not_served_without_a_key_unless_asked_for() -> None:
    with pytest.raises(ServeError, match="give an --api-key-file, or --allow-anyone"):
        run_serve(ServeOptions(host="0.0.0.0", port=0))


def test_a_port_in_use_is_one_sentence() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ServeError, match="in use; choose another port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_connection_that_says_nothing_or_half_of_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEADERS_PATIENCE_S", 0.2)

    async def run() -> None:
        async with gateway() as fixture:
            config = uvicorn.Config(fixture.app, http=PatientProtocol, log_config=None, lifespan="off", timeout_keep_alive=60)
            server = uvicorn.Server(config)
            listener = listen("127.0.0.1", 0)
            port = listener.getsockname()[1]
            serving = asyncio.create_task(server._serve([listener]))
            whole = b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
            for first, then in ((b"", b""), (b"", whole[:20]), (whole, whole[:20])):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(first)
                if first:
                    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                writer.write(then)
                rest = await asyncio.wait_for(reader.read(), 10)
                assert b"HTTP" not in rest
                writer.close()
            server.should_exit = True
            await serving

    asyncio.run(run())
