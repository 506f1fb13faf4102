from __future__ import annotations

import socket

import pytest

from tarragon_hpc.errors import ClusterError, ConfigError
from tarragon_hpc.transport.interfaces import (
    Interface,
    data_address,
    reachable_address,
    read_interfaces,
    resolve,
)

NODE = [
    Interface("lo", ("127.0.0.1", "::1"), True),
    Interface("eth0", ("192.0.2.7", "10.9.0.7", "2001:db8::7"), True),
    Interface("eth1", ("10.1.9.9",), False),
    Interface("ib0", ("10.1.0.7",), True),
    Interface("ib1", (), True),
]
THERE = (
    "there are lo 127.0.0.1 ::1, eth0 192.0.2.7 10.9.0.7 2001:db8::7, eth1 10.1.9.9 (down), "
    "ib0 10.1.0.7, ib1 without an address"
)


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("ib0", "10.1.0.7"),
        ("eth0", "192.0.2.7"),
        ("10.9.0.7", "10.9.0.7"),
        ("2001:db8:0::7", "2001:db8::7"),
        ("10.1.0.0/16", "10.1.0.7"),  # not eth1, which is down
        ("10.1.2.3/16", "10.1.0.7"),
        ("10.0.0.0/8", "10.9.0.7"),
        ("2001:db8::/32", "2001:db8::7"),
    ],
)
def test_a_setting_stands_for_an_address_of_the_node(setting, address):
    assert resolve(setting, NODE) == address


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("eth1", "eth1: is down on this node"),
        ("ib1", "ib1: has no address on this node"),
        ("ib2", "ib2: neither an interface, an address nor a block"),
        ("10.1.0.0/99", "10.1.0.0/99: neither an interface, an address nor a block"),
        ("10.1.9.9", "10.1.9.9: no interface that is up has it"),
        ("0.0.0.0", "0.0.0.0: no interface that is up has it"),
        ("172.16.0.0/12", "172.16.0.0/12: no interface that is up has it"),
        ("fe80::/10", "fe80::/10: no interface that is up has it"),
    ],
)
def test_a_setting_that_fits_nothing_is_refused_with_what_there_is(setting, problem):
    with pytest.raises(ConfigError) as refused:
        resolve(setting, NODE)
    assert str(refused.value) == f"transport.interface: {problem}; {THERE}"


def test_the_interfaces_of_this_machine_can_be_listened_on():
    interfaces = read_interfaces()
    assert {i.name for i in interfaces} == {name for _, name in socket.if_nameindex()}
    assert next(i for i in interfaces if i.name == "lo").addresses[0] == "127.0.0.1"
    for address in (a for i in interfaces if i.up for a in i.addresses):
        with socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        ):
            pass


def test_the_default_is_the_address_that_the_head_sees():
    for interface in read_interfaces():
        for address in interface.addresses if interface.up else ():
            assert data_address(None, address) == address
    assert data_address("127.0.0.0/8", "192.0.2.1") == "127.0.0.1"


def test_no_way_to_the_head_is_told():
    with pytest.raises(ClusterError, match=r"no way to the head at 255\.255\.255\.255: "):
        data_address(None, "255.255.255.255")


LO = Interface("lo", ("127.0.0.1", "::1"), up=True)
ETH = Interface("eth0", ("10.0.0.5",), up=True)
IB = Interface("ib0", ("10.1.0.5",), up=True)
OFF = Interface("eth1", ("10.2.0.5",), up=False)


@pytest.mark.parametrize(
    ("named", "interfaces", "address"),
    [
        (["10.1.0.5"], [LO, ETH, IB], "10.1.0.5"),
        (["127.0.1.1", "10.1.0.5"], [LO, ETH, IB], "10.1.0.5"),
        (["127.0.1.1"], [LO, ETH, IB], "10.0.0.5"),
        (["192.0.2.1"], [LO, ETH], "10.0.0.5"),
        (["10.2.0.5"], [LO, OFF, ETH], "10.0.0.5"),
        ([], [LO, OFF], "127.0.0.1"),
    ],
)
def test_an_address_that_other_nodes_can_reach(named, interfaces, address):
    assert reachable_address(named, interfaces) == address
