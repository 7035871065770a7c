from __future__ import annotations

import ipaddress

import pytest

from llmkit.data.web.addresses import is_permitted, networks


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "203.0.113.7", "224.0.0.1"),
        *("239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd12:3456::1"),
        *("fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1"),
        *("64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:c0a8:101::1", "100::1"),
        # Teredo: the client's address is at the end, with all bits turned over.
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not is_permitted(ipaddress.ip_address(address), ())


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.32.0.1", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_the_public_internet(address: str) -> None:
    assert is_permitted(ipaddress.ip_address(address), ())


def test_networks_that_are_allowed() -> None:
    allowed = networks(["10.1.0.0/16", "fd00::/8"])
    permitted = ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "8.8.8.8"]
    refused = ["10.2.0.1", "127.0.0.1", "::ffff:10.2.0.1", "fc00::1"]
    assert all(is_permitted(ipaddress.ip_address(address), allowed) for address in permitted)
    assert not any(is_permitted(ipaddress.ip_address(address), allowed) for address in refused)
