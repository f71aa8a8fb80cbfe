"""Attacks, one per test.

Attacks on the objects of other projects are in `test_isolation`, those by pages of other sites in `test_browsers`.
"""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
import zstandard
from starlette.testclient import TestClient

from gradmedic.cli import main
from gradmedic.protocol.access import SCOPES
from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE
from gradmedic_service.access import service as access
from gradmedic_service.access.secrets import new_secret
from gradmedic_service.database.engine import Database
from gradmedic_service.logs import set_up_logging
from gradmedic_service.settings import Settings

RUNS = f"{API_PATH}/runs"
KEYS = f"{API_PATH}/api-keys"
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"
SQL = [
    "'; DROP TABLE runs; --",
    "' OR '1'='1",
    "%",
    "_",
    "\\",
    'x" UNION SELECT digest FROM api_keys --',
    "1;SELECT pg_sleep(9)",
]


@pytest.mark.slow
@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope != "admin"])
def test_only_admins_make_keys(scope: str, client_with_key: Any) -> None:
    """Scope escalation: a key without `admin` cannot make a key, so it cannot extend its own scopes."""
    thief = client_with_key(scope)
    refused = thief.post(KEYS, json={"project": "mine", "scopes": ["admin"]})
    assert (refused.status_code, refused.json()["error_code"]) == (403, "scope_missing")
    assert thief.get(KEYS).status_code == 403


def test_scopes_are_not_taken_from_the_request(client_with_key: Any) -> None:
    """Scope escalation: no header, parameter or field of the body adds a scope or another project."""
    thief = client_with_key("read")
    headers = {"X-Scopes": "admin", "X-Forwarded-User": "root", "X-Project": "theirs", "X-HTTP-Method-Override": "GET"}
    assert thief.post(RUNS, json={"project": "mine", "layers": []}, headers=headers).status_code == 403
    assert thief.get(RUNS, params={"scopes": "admin"}).status_code == 422
    assert (
        client_with_key("ingest").post(RUNS, json={"project": "mine", "layers": [], "scopes": ["admin"]}).status_code
        == 422
    )


def test_two_authorization_headers(client_without_key: TestClient, make_secret: Any) -> None:
    """A second Authorization header adds nothing to what the first one allows."""
    reader, admin = make_secret("read"), make_secret("admin")
    pairs = [("Authorization", f"Bearer {reader}"), ("Authorization", f"Bearer {admin}")]
    assert client_without_key.get(KEYS, headers=httpx2.Headers(pairs)).status_code in (401, 403)


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", gzip.compress(bytes(50_000_000), 9)),
        ("gzip", gzip.compress(gzip.compress(bytes(50_000_000), 9)) * 1),
        ("zstd", zstandard.compress(bytes(50_000_000), 19)),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
    ],
    ids=["gzip", "gzip in gzip", "zstd", "stacked"],
)
def test_decompression_bombs(sqlite_client: TestClient, encoding: str, bomb: bytes) -> None:
    """A small body that decompresses to a huge one, or is compressed twice, is refused."""
    headers = {"Content-Encoding": encoding, "Content-Type": JSON_MEDIA_TYPE}
    assert len(bomb) < 100_000
    response = sqlite_client.post(RUNS, content=bomb, headers=headers)
    assert response.status_code in (400, 413, 415)


@pytest.mark.slow
def test_oversized_bodies(serve: Any, sqlite_url: str) -> None:
    """A body over the limit is refused by its declared length, or, with a false or no length, by its received bytes."""
    with serve(sqlite_url) as served, httpx2.Client(base_url=served.url) as client:
        headers = {"Content-Type": JSON_MEDIA_TYPE}
        declared = client.post(RUNS, content=b" " * 17_000_000, headers=headers)
        streamed = client.post(RUNS, content=(b" " * 1_000_000 for _ in range(18)), headers=headers)
        assert {(answer.status_code, answer.json()["error_code"]) for answer in (declared, streamed)} == {
            (413, "body_too_large")
        }


def test_bodies_without_a_key_are_not_read(client_without_key: TestClient) -> None:
    """Without a key the body of a request is neither read nor parsed."""
    headers = {"Content-Type": JSON_MEDIA_TYPE}
    assert client_without_key.post(RUNS, content=b"[" * 100_000, headers=headers).status_code == 401
    bomb = gzip.compress(bytes(50_000_000))
    assert (
        client_without_key.post(RUNS, content=bomb, headers=headers | {"Content-Encoding": "gzip"}).status_code == 401
    )


@pytest.mark.parametrize("depth", [33, 1_000, 100_000])
def test_deep_config(sqlite_client: TestClient, depth: int) -> None:
    """A config nested beyond the limit is refused, however deep, without exhausting the stack."""
    config = '{"a":' * depth + "1" + "}" * depth
    body = f'{{"project": "p", "layers": [], "config": {config}}}'
    response = sqlite_client.post(RUNS, content=body, headers={"Content-Type": JSON_MEDIA_TYPE})
    assert response.status_code in (400, 422), response.text[:200]
    assert sqlite_client.get("/healthz").status_code == 200


def test_large_config(sqlite_client: TestClient) -> None:
    """A config of too many bytes is refused, whether in one value or in many."""
    for config in ({"a": "x" * 300_000}, {f"key{number}": number for number in range(40_000)}):
        response = sqlite_client.post(RUNS, json={"project": "p", "layers": [], "config": config})
        assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "config")


@pytest.mark.parametrize(
    "name", ["a\r\nSet-Cookie: x=1", "a\nb", "a\rb", "a\x00b", "a\x1b[2Jb", "a\u2028b", "a\x85b", "\u202eabc"]
)
@pytest.mark.parametrize("field", ["project", "name", "group", "tags", "framework", "trainable"])
def test_header_and_log_injection(sqlite_client: TestClient, field: str, name: str) -> None:
    """A name with a control character is refused, so no name can break a header, a log line or a terminal."""
    body = {"project": "p", "layers": [], field: [name] if field == "tags" else name}
    response = sqlite_client.post(RUNS, json=body)
    assert (response.status_code, response.json()["error_code"]) == (422, "invalid_request")
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "tail",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e",
        "..",
        ".",
        "%00",
        "%0d%0aX-Injected:%201",
        "~root",
        "x%5c..%5cy",
        "%ff",
        "{run_id}",
    ],
)
def test_path_tricks(sqlite_client: TestClient, tail: str) -> None:
    """Only UUIDs are accepted as ids, and no path leads out of the folder of the documentation's files."""
    for path in (f"{RUNS}/{tail}", f"{KEYS}/{tail}", f"/docs/files/{tail}", f"/docs/files/../{tail}", f"/runs/{tail}"):
        response = sqlite_client.request("DELETE" if path.startswith(KEYS) else "GET", path, follow_redirects=False)
        assert response.status_code in (200, 404, 405, 422, 307), path
        assert "root:" not in response.text
        assert "x-injected" not in response.headers
        if response.status_code == 200:
            assert path == f"{RUNS}/." or path.startswith((f"{RUNS}/..", "/docs/files/..", "/runs/..")), path


def test_open_redirects(sqlite_client: TestClient) -> None:
    """No path is redirected to another host."""
    for path in ("//evil.example", "/runs//evil.example", "/runs/https:%2f%2fevil.example", "/%5cevil.example"):
        response = sqlite_client.get(f"http://testserver{path}", follow_redirects=False)
        assert not response.headers.get("location", "/").startswith(("//", "http", "\\"))


@pytest.mark.parametrize("text", SQL)
def test_sql_metacharacters(client: TestClient, create_run: Any, text: str) -> None:
    """Text with a meaning in SQL is stored, found and listed as it is, and finds nothing else."""
    other = create_run(client, project="other", name="other")
    path = create_run(client, project=text, name=text, tags=[text], group=text)
    for query in ({"project": text}, {"tag": text}, {"q": text}):
        found = client.get(RUNS, params=query).json()["items"]
        assert [run["id"] for run in found] == [path.rpartition("/")[2]], query
    assert client.get(RUNS, params={"sort": text}).status_code == 422
    assert client.get(RUNS, params={"page_token": text}).status_code == 422
    assert client.get(f"{API_PATH}/projects/{httpx2.URL(f'http://h/{text}').raw_path.decode()[1:]}").status_code in (
        200,
        404,
    )
    assert client.get(other).status_code == 200


def test_markup_in_names(sqlite_client: TestClient, create_run: Any) -> None:
    """HTML in a name is answered as JSON that no browser interprets as a page."""
    path = create_run(sqlite_client, project=MARKUP, name=MARKUP, notes=MARKUP)
    for response in (sqlite_client.get(path), sqlite_client.get(RUNS), sqlite_client.get(f"/{MARKUP}")):
        assert response.headers["content-type"] in (JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
    assert sqlite_client.get(path).json()["name"] == MARKUP


@pytest.mark.parametrize("place", ["/{}", "/api/v1/runs?api_key={}", "/docs?access_token={}", "/runs/{}", "/?a=%67{}"])
def test_a_key_in_a_url(client: TestClient, place: str, database: Database) -> None:
    """A URL with a valid key is refused, and neither the answer nor the log contains the key."""
    with database.writing() as session:
        _, secret = access.create_key(session, project=None, name="k", scopes=["admin"])
    url = place.format(secret.removeprefix("g") if "%67" in place else secret)
    with structlog.testing.capture_logs() as lines:
        response = client.get(url)
    assert (response.status_code, response.json()["error_code"]) == (400, "api_key_in_url")
    assert secret not in response.text
    assert len(lines) == 1
    assert secret not in str(lines)


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_in_log_lines(form: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Secrets are redacted in every line of the log: in events, in records of libraries and in tracebacks."""
    secret = new_secret()
    root = logging.getLogger()
    before = root.handlers[:], root.level, structlog.get_config()
    try:
        set_up_logging(Settings(log_format=form))
        structlog.get_logger("t").warning("event", path=f"/x/{secret}", header={"Authorization": f"Bearer {secret}"})
        logging.getLogger("uvicorn.error").warning("of %s", secret)
        try:
            raise ValueError(secret)
        except ValueError:
            structlog.get_logger("t").exception("failed")
        lines = capsys.readouterr().err
    finally:
        root.handlers[:], root.level = before[0], before[1]
        structlog.configure(**before[2])
    assert lines.count(f"{secret[:16]}...") == 4
    assert secret not in lines
    if form == "json":
        assert all(json.loads(line) for line in lines.splitlines())


@pytest.mark.slow
def test_secrets_in_the_log_of_a_service(serve: Any, sqlite_url: str, tmp_path: Path, capsys: Any) -> None:
    """The log of a running service contains neither accepted nor refused keys."""
    good, bad = new_secret(), new_secret()
    file = tmp_path / "key"
    file.write_text(good)
    make = [
        "api-key",
        "create",
        "--all-projects",
        "--scope",
        "admin",
        "--from-file",
        str(file),
        "--database-url",
        sqlite_url,
    ]
    assert main(make) == 0
    with serve(sqlite_url, "--require-auth") as served, httpx2.Client(base_url=served.url) as client:
        for secret, status in ((good, 200), (bad, 401)):
            assert client.get(RUNS, headers={"Authorization": f"Bearer {secret}"}).status_code == status
            assert client.get(f"{RUNS}?key={secret}").status_code == 400
        assert (
            client.post(KEYS, json={"scopes": ["read"]}, headers={"Authorization": f"Bearer {good}"}).status_code == 201
        )
    log = (tmp_path / "serve.log").read_text()
    assert log.count("status=400") == 2
    assert good not in log
    assert bad not in log
