"""Requests go to checked addresses only: a name is resolved, each of its addresses is checked, and one of these is connected to.

The name is not resolved again, so a name server that answers differently a moment later changes nothing. The Host header and the
certificate remain those of the name.
"""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

from cluster.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address is its last 32 bits


class CheckedTransport(httpx.BaseTransport):
    """An httpx transport for one host. Raises `ConfigError` where the host leads to an address that is not allowed."""

    def __init__(
        self,
        allowed: Sequence[Network],
        *,
        resolve: Callable[[str, int], list[Address]] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`allowed`: networks that are not public and may be asked. `resolve`, `transport`: where names and replies come from."""
        self._allowed = tuple(allowed)
        self._resolve = resolve or resolved
        self._transport = transport or httpx.HTTPTransport(trust_env=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host, port = request.url.host, request.url.port or {"http": 80, "https": 443}[request.url.scheme]
        *others, last = self._addresses(host, port)
        for address in others:
            try:
                return self._transport.handle_request(_to(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # perhaps no route for this family; the next address of the name is tried
        return self._transport.handle_request(_to(request, last))

    def close(self) -> None:
        self._transport.close()

    def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            addresses = self._resolve(host, port)
        except OSError as error:
            raise httpx.ConnectError(f"{host} cannot be resolved: {error}") from error
        for address in addresses:
            if not may_be_asked(address, self._allowed):
                raise ConfigError(
                    f"{host} leads to {address}, which is not a public address; "
                    f'if it may be asked, put its network into allowed_networks, for example "{address}"'
                )
        return addresses


def may_be_asked(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address is public or lies in one of `allowed`, after any IPv4 address inside it is taken out."""
    inner = _inner(address)
    return (inner.is_global and not inner.is_multicast) or any(inner in network for network in allowed)


def resolved(host: str, port: int) -> list[Address]:
    """The addresses of a name; never empty. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(address[0]).partition("%")[0]) for *_, address in found))


def _inner(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _to(request: httpx.Request, address: Address) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,  # with the Host of the name
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )
