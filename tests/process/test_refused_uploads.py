"""A body that is too large is refused before it has come, and real clients get the whole answer.

A server that closes while its client still sends may have the answer overtaken by a reset:
the client then says "connection reset", and nobody learns which limit it was.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.process.node import Node
from tests.required import need_program

pytestmark = pytest.mark.process

SECONDS_MAX: Final = 60
MIB: Final = 1 << 20
# Beyond the largest message by little, and by far more than the sockets' buffers hold.
SIZES: Final = (MIB + 1, 40 * MIB)
EXPECT: Final = {"expect": "Expect: 100-continue", "no-expect": "Expect:"}
JSON: Final = "application/json"


class Upload(NamedTuple):
    """What is sent where, and how it is refused."""

    method: str
    path: str
    media_type: str
    status: int
    code: str


MESSAGE: Final = Upload("POST", "/v1/topics/chat/messages", JSON, 413, "message_too_large")
OTHERS: Final = (
    Upload("POST", "/v1/messages", "application/x-ndjson", 413, "batch_too_large"),
    Upload("POST", "/v1/topics/chat/messages", "text/plain", 415, "unsupported_media_type"),
    Upload("PUT", "/v1/topics/chat", JSON, 413, "message_too_large"),
    Upload("POST", "/nowhere", JSON, 404, "not_found"),
    Upload("GET", "/v1/topics", JSON, 200, ""),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("node") / "data") as found:
        found.start()
        yield found


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("bodies")
    files = {}
    for size in SIZES:
        files[size] = folder / str(size)
        files[size].write_bytes(b'"' + b"x" * (size - 2) + b'"')
    return files


def check(upload: Upload, status: int, media_type: str, body: str) -> None:
    answer: dict[str, Any] = json.loads(body)
    assert (status, answer.get("code", "")) == (upload.status, upload.code)
    assert media_type == ("application/problem+json" if upload.code else JSON)
    if upload is MESSAGE:
        assert "1048576" in answer["detail"].replace(",", "")


def curl(upload: Upload, coding: str, expect: str, size: int, node: Node, body: Path) -> None:
    headers = [f"Content-Type: {upload.media_type}", EXPECT[expect]]
    headers += ["Transfer-Encoding: chunked"] if coding == "chunked" else []
    ended = subprocess.run(
        [
            *(need_program("curl"), "--silent", "--show-error", "--noproxy", "*"),
            *(each for header in headers for each in ("--header", header)),
            *("--request", upload.method, "--data-binary", f"@{body}"),
            *("--write-out", "\n%{http_code} %{content_type}"),
            f"http://127.0.0.1:{node.port}{upload.path}",
        ],
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    text, _, last = ended.stdout.rpartition("\n")
    status, _, media_type = last.partition(" ")
    check(upload, int(status), media_type, text)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("expect", EXPECT)
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_curl_gets_the_whole_refusal_of_a_body_that_is_too_large(
    coding: str, expect: str, size: int, node: Node, bodies: dict[int, Path]
) -> None:
    curl(MESSAGE, coding, expect, size, node, bodies[size])


@pytest.mark.parametrize("upload", OTHERS, ids=lambda upload: upload.code or "answered")
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_curl_gets_every_answer_that_comes_before_its_body_has(
    coding: str, upload: Upload, node: Node, bodies: dict[int, Path]
) -> None:
    curl(upload, coding, "no-expect", SIZES[-1], node, bodies[SIZES[-1]])


# The way, the size and the URL come as arguments; the answer goes out as JSON.
JAVASCRIPT: Final = """
const http = require("node:http");
const [way, coding, expect, size, url, method, mediaType] = process.argv.slice(1);
const body = Buffer.alloc(Number(size), "x");
body[0] = body[body.length - 1] = 0x22;
const tell = (status, type, text) => console.log(JSON.stringify([status, type, text]));

async function* pieces() {
  for (let at = 0; at < body.length; at += 65536) yield body.subarray(at, at + 65536);
}

async function byFetch() {
  const answer = await fetch(url, {
    method,
    headers: { "Content-Type": mediaType },
    body: coding === "chunked" ? ReadableStream.from(pieces()) : body,
    duplex: "half",
  });
  tell(answer.status, answer.headers.get("content-type"), await answer.text());
}

async function byHttp() {
  const headers = { "Content-Type": mediaType };
  if (coding === "length") headers["Content-Length"] = body.length;
  if (expect === "expect") headers.Expect = "100-continue";
  const request = http.request(url, { method, headers });
  const answered = new Promise((resolve, reject) => {
    request.on("error", reject);
    request.on("response", (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (part) => (text += part));
      answer.on("error", reject).on("end", () => resolve([answer, text]));
    });
  });
  const send = async () => {
    for await (const piece of pieces())
      if (!request.write(piece)) await new Promise((resolve) => request.once("drain", resolve));
    request.end();
  };
  if (expect === "expect") {
    request.on("continue", send);
    request.flushHeaders();
  } else send();
  const [answer, text] = await answered;
  tell(answer.statusCode, answer.headers["content-type"], text);
}

(way === "fetch" ? byFetch() : byHttp()).then(
  () => process.exit(0),
  (error) => {
    console.error(error, error.cause);
    process.exit(1);
  },
);
"""


def javascript(upload: Upload, way: str, coding: str, expect: str, size: int, node: Node) -> None:
    url = f"http://127.0.0.1:{node.port}{upload.path}"
    arguments = [way, coding, expect, str(size), url, upload.method, upload.media_type]
    ended = subprocess.run(
        [need_program("node"), "--eval", JAVASCRIPT, *arguments],
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    check(upload, *json.loads(ended.stdout))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("way", "expect"),
    [("fetch", "no-expect"), ("http", "no-expect"), ("http", "expect")],
)
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_node_gets_the_whole_refusal_of_a_body_that_is_too_large(
    coding: str, way: str, expect: str, size: int, node: Node
) -> None:
    javascript(MESSAGE, way, coding, expect, size, node)


@pytest.mark.parametrize(
    "upload", OTHERS[:-1], ids=lambda upload: upload.code or "answered"
)  # fetch sends no body with GET
@pytest.mark.parametrize(("way", "coding"), [("fetch", "length"), ("http", "chunked")])
def test_node_gets_every_answer_that_comes_before_its_body_has(
    way: str, coding: str, upload: Upload, node: Node
) -> None:
    javascript(upload, way, coding, "no-expect", SIZES[-1], node)
