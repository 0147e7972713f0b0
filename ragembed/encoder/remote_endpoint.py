"""One address on an HTTP server: repeated attempts, bounded answers, errors in one sentence.

The waits follow RFC 9110 (`Retry-After`, section 10.2.3). The HTTP client is httpx. Left to its
habits it follows no redirects, takes proxies (`HTTPS_PROXY`, `NO_PROXY`, ...) and certificates
(`SSL_CERT_FILE`, `SSL_CERT_DIR`) from the environment, and waits 5 seconds. Here no redirect is
followed either, so that key and texts go to the given address alone; the environment is respected,
except that a server on this machine is never asked through a proxy; and the caller sets the time.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx

from ragembed.errors import InvalidInput, RemoteFailed

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0  # seconds between two attempts, whatever Retry-After says
_FIRST_WAIT = 0.5
_LONGEST_BACKOFF = 30.0
_ERROR_BYTES = 1 << 16
_MESSAGE_CHARACTERS = 300

_PASSING = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
_ADVICE: Mapping[int, str] = {
    400: "check the model and the length of the texts",
    401: "check api_key",
    403: "check api_key",
    404: "check base_url and model",
    413: "lower batch_texts or batch_characters",
    422: "check the model and the length of the texts",
    429: "ask again later, or lower batch_texts",
}


class Endpoint:
    """An address that takes JSON by POST; usable from several threads.

    Attributes:
        url: the address, in lower case where case means nothing, without a slash at its end.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout: float,
        retries: int,
        sleep: Callable[[float], None],
    ) -> None:
        """Opens no connection yet.

        Raises:
            InvalidInput: an address or a key that cannot be used, or the environment names a proxy
                or certificates that cannot be.
        """
        self.url = _checked_url(url)
        self._api_key = _checked_key(api_key)
        self._timeout = timeout
        self._retries = retries
        self._sleep = sleep
        # Compressed answers are not asked for: base64 hardly shrinks, and the bound stays simple.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        try:
            self._client = httpx.Client(
                headers=headers,
                timeout=timeout,
                follow_redirects=False,
                # With a transport of its own, the client looks for no proxies.
                transport=httpx.HTTPTransport() if _is_local(self.url) else None,
            )
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            raise InvalidInput(
                f"the proxy or certificates that the environment names cannot be used ({error}); "
                "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
            ) from None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._client.is_closed

    def close(self) -> None:
        """Close the connections; closing twice does nothing."""
        self._client.close()

    def post(self, path: str, body: bytes, *, most: int, purpose: str) -> bytes:
        """The body of a good answer, after as many attempts as are allowed.

        No connection, no answer in time, and the statuses 408, 429 and 5xx are tried again.

        Args:
            path: what is appended to the address.
            body: JSON.
            most: bytes; a longer answer is an error.
            purpose: what it is for, in messages ("for texts 1 to 128 of 300").

        Raises:
            RemoteFailed: the server was not reached, refused, or answered too much.
        """
        for attempt in range(self._retries + 1):
            asked_for = 0.0
            try:
                status, headers, answer = self._ask(path, body, most, purpose)
            except httpx.TimeoutException:
                failure = f"gave no answer within {self._timeout:g} seconds {purpose}"
                advice = "raise timeout or lower batch_texts"
            except _PASSING as error:
                failure = f"was not reached {purpose} ({self.clean(str(error) or repr(error))})"
                advice = "check base_url and whether the server runs"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                cause = self.clean(f"{type(error).__name__}: {error}")
                raise self.failed(f"cannot be asked {purpose} ({cause}); check base_url") from None
            else:
                if status == 200:
                    return answer
                failure = f"answered {status} {purpose} ({self._reason(status, headers, answer)})"
                advice = _ADVICE.get(status, "look at the server's log")
                if status not in (408, 429) and status < 500:
                    raise self.failed(f"{failure}; {advice}")
                asked_for = retry_after(headers.get("Retry-After"))
            if attempt < self._retries:
                wait = max(asked_for, _backoff(attempt))
                told = (self.url, failure, wait, attempt + 1, self._retries)
                logger.warning("%s %s; trying again in %.1f s (%d of %d)", *told)
                self._sleep(wait)
        times = f", {self._retries + 1} times in a row" if self._retries else ""
        raise self.failed(f"{failure}{times}; {advice}")

    def failed(self, what: str) -> RemoteFailed:
        """The error that says so of this address."""
        return RemoteFailed(f"{self.url} {what}")

    def clean(self, text: str) -> str:
        """One line of printable characters, of bounded length and without the key."""
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        if self._api_key:
            line = line.replace(self._api_key, "***")
        return line if len(line) <= _MESSAGE_CHARACTERS else f"{line[:_MESSAGE_CHARACTERS]}..."

    def _ask(
        self, path: str, body: bytes, most: int, purpose: str
    ) -> tuple[int, httpx.Headers, bytes]:
        """One attempt: status, headers and body, of bounded size and within bounded time."""
        answer = bytearray()
        with self._client.stream("POST", f"{self.url}{path}", content=body) as response:
            # The client's own limit is from one part to the next: a trickle would never end.
            deadline = time.monotonic() + self._timeout
            for part in response.iter_bytes():
                answer += part
                if response.status_code != 200:
                    if len(answer) > _ERROR_BYTES:
                        break
                elif len(answer) > most:
                    raise self.failed(
                        f"answered more than {most:,} bytes {purpose}, which vectors do not take; "
                        "check base_url"
                    )
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer did not end")
            return response.status_code, response.headers, bytes(answer)

    def _reason(self, status: int, headers: httpx.Headers, body: bytes) -> str:
        if 300 <= status < 400:
            target = self.clean(headers.get("Location", "nowhere"))
            return f"a redirect to {target}, not followed: where it is right, make it base_url"
        return self.clean(error_message(body)) or "without a reason"


def error_message(body: bytes) -> str:
    """The message of an error answer, as it came.

    OpenAI has it in `error.message`, text-embeddings-inference in `message` or `error`, others in
    `detail`; anything else is given back whole.

    >>> error_message(b'{"error": {"message": "no such model", "code": null}}')
    'no such model'
    """
    text = body.decode("utf-8", "replace")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(answer, dict):
        return text
    nested = answer.get("error")
    if isinstance(nested, dict):
        nested = nested.get("message")
    for message in (nested, answer.get("message"), answer.get("detail")):
        if isinstance(message, str) and message:
            return message
    return text


def retry_after(value: str | None) -> float:
    """Seconds that a `Retry-After` header asks for, from 0 to `LONGEST_WAIT`.

    >>> retry_after("2"), retry_after("86400"), retry_after("soon")
    (2.0, 60.0, 0.0)
    """
    if value is None:
        return 0.0
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), LONGEST_WAIT)
    try:
        date = parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        seconds = (date - datetime.now(timezone.utc)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0  # neither seconds nor a date: it asks for nothing
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: doubling, and spread so that clients do not come together."""
    return min(_LONGEST_BACKOFF, _FIRST_WAIT * 2.0**attempt) * random.uniform(0.5, 1.0)


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"base_url cannot be used ({error}); give http://host:port/v1") from None
    if parsed.userinfo:  # before any message that shows the address
        raise InvalidInput("base_url holds a user name or password; leave it out and give api_key")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(f"base_url {url!r} is not a server's address; give http://host:port/v1")
    if parsed.query or parsed.fragment:
        raise InvalidInput(
            f"base_url {url!r} has a part after ? or #, where nothing can be appended; give "
            "http://host:port/v1"
        )
    return str(parsed).rstrip("/")


def _checked_key(api_key: str | None) -> str:
    """A key that a header can hold; the client's own error would show it."""
    for n, character in enumerate(api_key or ""):
        if not "!" <= character <= "~":
            raise InvalidInput(
                f"character {n + 1} of api_key is blank or not ASCII; give the bare key"
            )
    return api_key or ""


def _is_local(url: str) -> bool:
    """Whether the server is on this machine; a proxy would be handed the texts for nothing."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
