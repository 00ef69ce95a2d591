"""Publish to repl-broker from any Python program. One function, to be copied.

A message is sent again, under the same Idempotency-Key, for as long as that may help. However
often it was sent, it is kept once. This needs httpx, and nothing of the broker.
"""

import os
import random
import time
import uuid

import httpx

URL = os.environ.get("REPL_BROKER_URL", "http://127.0.0.1:4080")
TRY_AGAIN = {408, 429, 500, 502, 503, 504}

_client = httpx.Client(base_url=URL, timeout=5)


class NotPublishedError(Exception):
    """No answer that helps came in time. The same key may be tried again later."""


class RefusedError(NotPublishedError):
    """The broker will not take this message as it is: trying again does not help."""


def publish(topic, data, key=None, patience_seconds=5.0):
    """Publish ``data`` once; returns the broker's answer. Blocks, at worst for the patience."""
    headers = {"Idempotency-Key": key or str(uuid.uuid4())}
    end = time.monotonic() + patience_seconds
    attempt = 0
    while True:
        at_least = 0.0
        try:
            answer = _client.post(f"/v1/topics/{topic}/messages", json=data, headers=headers)
            if answer.is_success:
                return answer.json()
            problem, at_least = answer.text, retry_after_seconds(answer)
            if answer.status_code not in TRY_AGAIN:
                raise RefusedError(problem)
        except httpx.TransportError as error:  # refused, reset, timed out
            problem = str(error)
        wait = at_least + random.uniform(0.1, 0.2) * 2 ** min(attempt, 5)
        if time.monotonic() + wait > end:
            raise NotPublishedError(f"{URL}: given up after {attempt + 1} attempts: {problem}")
        time.sleep(wait)
        attempt += 1


def retry_after_seconds(answer):
    """What ``Retry-After`` asks for. A date, which a proxy may send, is not heeded."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
