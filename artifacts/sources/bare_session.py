"""requests without its Session, which costs more than the request where files are small.

A Session looks the environment up for every request, keeps an archive's cookies, and reads the
whole body of a redirect that it is told not to follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin

import requests

# What is fetched is kept as it is stored: nothing may recode it on the way.
REQUEST_HEADERS = {"User-Agent": "devserver", "Accept": "*/*", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class _Environment:
    """What the environment says of one host: proxies, certificates, the password in ``.netrc``."""

    proxies: Mapping[str, str]
    verify: bool | str
    certificate: Any
    auth: tuple[str, str] | None


class BareSession:
    """Keeps up to ``max_connections`` connections to a host for reuse; for any number of threads.

    Proxies, certificates and passwords are those that requests would use, as they were when the
    host was first asked.
    """

    def __init__(self, max_connections: int) -> None:
        self._adapter = requests.adapters.HTTPAdapter(pool_maxsize=max_connections)
        self._environment_of = lru_cache(maxsize=1000)(_environment_of)

    def request(
        self, method: str, url: str, headers: Mapping[str, str], timeout: tuple[float, float]
    ) -> requests.Response:
        """Send a request and return the answer, whatever it is, with its body still to be read."""
        environment = self._environment_of(urljoin(url, "/"))
        request = requests.Request(
            method, url, headers={**REQUEST_HEADERS, **headers}, auth=environment.auth
        )
        return self._adapter.send(
            request.prepare(),
            stream=True,
            timeout=timeout,
            verify=environment.verify,
            cert=environment.certificate,
            proxies=environment.proxies,
        )

    def close(self) -> None:
        self._adapter.close()


def _environment_of(url: str) -> _Environment:
    settings = requests.Session().merge_environment_settings(url, {}, True, None, None)
    return _Environment(
        proxies=settings["proxies"],
        verify=settings["verify"] or True,
        certificate=settings["cert"],
        auth=requests.utils.get_netrc_auth(url),
    )
