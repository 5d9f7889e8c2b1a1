"""Where requests of a scorer may go: a host is resolved once, its address judged, and that very address connected to.

To judge a name and let the client resolve it again would trust a name server that answers differently the second time (DNS
rebinding). A URL in a configuration must not reach this machine, its network, or a cloud's metadata service by accident.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence

import httpx

from cluster.errors import ConfigError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]  # (host, port) -> addresses


def resolved(host: str, port: int) -> list[str]:
    """By the system, which also reads numbers such as 2130706433 as addresses. Raises `OSError`."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def check_addresses(addresses: Sequence[str], *, host: str, allow_loopback: bool, allow_private: bool) -> None:
    """Raise `ConfigError` where any of them must not be reached: a name may have several."""
    for text in addresses:
        problem = _problem(_unwrapped(ipaddress.ip_address(text.partition("%")[0])), allow_loopback, allow_private)
        if problem:
            raise ConfigError(f"host {host!r} is at {text}, {problem}")


class CheckedTransport(httpx.HTTPTransport):
    """Connects to the address that was checked; certificates are still those of the name."""

    def __init__(self, *, allow_loopback: bool, allow_private: bool, resolve: Resolver = resolved) -> None:
        super().__init__(trust_env=False)
        self._allow_loopback = allow_loopback
        self._allow_private = allow_private
        self._resolve = resolve

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        try:
            addresses = self._resolve(host, request.url.port or {"http": 80, "https": 443}[request.url.scheme])
        except OSError as error:
            raise httpx.ConnectError(f"{host} cannot be resolved: {error}", request=request) from error
        check_addresses(addresses, host=host, allow_loopback=self._allow_loopback, allow_private=self._allow_private)
        request.extensions = {**request.extensions, "sni_hostname": host}
        problem = httpx.ConnectError(f"{host} has no address", request=request)
        for address in addresses:
            request.url = request.url.copy_with(host=address)  # the Host header was set from the name before
            try:
                return super().handle_request(request)
            except httpx.ConnectError as error:
                problem = error
        raise problem


def _unwrapped(address: IPAddress) -> IPAddress:
    """An IPv4 address that travels as IPv6, mapped or through a 6to4 relay."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    return address.ipv4_mapped or address.sixtofour or address


def _problem(address: IPAddress, allow_loopback: bool, allow_private: bool) -> str:
    """Why an address must not be reached; empty where it may."""
    if address.is_loopback:
        return "" if allow_loopback else "this machine; only localhost, 127.0.0.1 and ::1 may name it"
    if address.is_link_local:
        return "a link-local address, where clouds keep their secrets; it is never asked"
    if address.is_multicast or address.is_unspecified or (address.is_reserved and not address.is_private):
        return "no address of a server"
    if not address.is_global:
        return "" if allow_private else "a private network; set allow_private=true if the scorer is on yours"
    return ""
