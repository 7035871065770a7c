"""Which addresses may be connected to: those of the public internet, and networks that the settings name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""IPv6 addresses that stand for the IPv4 address in their last 32 bits (RFC 6052; RFC 4291, 2.5.5.1)."""

_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "64:ff9b:1::/48", "3fff::/20")))
"""Networks for special purposes that older Pythons take for public ones (IANA's registries of such)."""


class RefusedAddressError(Exception):
    """A name leads to an address that may not be connected to."""


def networks(allowed: Sequence[str]) -> tuple[Network, ...]:
    """Networks as the settings write them."""
    return tuple(ipaddress.ip_network(text) for text in allowed)


def is_permitted(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address is public, or in a network that is allowed.

    An IPv6 address that carries an IPv4 address (mapped, translated, 6to4, Teredo) counts as that.
    """
    if any(address in network for network in allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner_address(address)
        if inner is not None:
            return is_permitted(inner, allowed)
        if address.is_site_local:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _inner_address(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else None)


def permitted_addresses(host: str, port: int, allowed: Sequence[Network]) -> list[str]:
    """The addresses of a host, as numbers.

    A name is resolved once and its numbers are what is connected to, so that a name server which gives a public
    address first and a private one later gains nothing.

    Raises:
        OSError: the name is not known.
        RefusedAddressError: one of its addresses may not be connected to.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        if not is_permitted(ipaddress.ip_address(text.partition("%")[0]), allowed):
            named = text if text == host else f"{host} ({text})"
            raise RefusedAddressError(f"{named} is no address of the public internet")
    return addresses
