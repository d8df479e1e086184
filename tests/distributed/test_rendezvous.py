"""Settings of hosts, and what a host finds out before it waits for others. With processes:
test_joining.py.
"""

from __future__ import annotations

import concurrent.futures
import socket

import jax
import pytest

from bridge_jax.distributed import multihost, rendezvous
from tests import errors

EXPLICIT = dict(coordinator="10.0.0.1:1234", count=2, index=1)


@pytest.mark.parametrize(
    "given, environment, found",
    [
        ({}, {}, ("", 0, -1)),
        (EXPLICIT, {}, ("10.0.0.1:1234", 2, 1)),
        (
            dict(coordinator="10.0.0.1:1234", count=2),
            {"BRIDGE_HOST_INDEX": "0"},
            ("10.0.0.1:1234", 2, 0),
        ),
        (
            {},
            {"BRIDGE_COORDINATOR": "node-1:99", "BRIDGE_HOST_COUNT": "3", "BRIDGE_HOST_INDEX": "2"},
            ("node-1:99", 3, 2),
        ),
        (
            EXPLICIT,
            {"BRIDGE_HOST_INDEX": "0"},
            ("10.0.0.1:1234", 2, 1),
        ),  # what the config says counts
        ({}, {"BRIDGE_COORDINATOR": "auto"}, ("auto", 0, -1)),
        (dict(coordinator="[::1]:1234", count=1, index=0), {}, ("", 1, 0)),
        (EXPLICIT | dict(coordinator="node-1:65535"), {}, ("node-1:65535", 2, 1)),
    ],
)
def test_config_and_environment(given, environment, found):
    """The environment fills in the keys that stand at their defaults."""
    h = rendezvous.read(rendezvous.Hosts(**given), environment)
    assert (h.coordinator, h.count, h.index) == found


@pytest.mark.parametrize(
    "given, environment, message",
    [
        (dict(coordinator="10.0.0.1"), {}, ("hosts.coordinator='10.0.0.1'", "HOST:PORT")),
        (
            EXPLICIT | dict(index=2),
            {},
            ("hosts.count=2, hosts.index=2", "BRIDGE_HOST_INDEX"),
        ),
        (EXPLICIT | dict(index=-1), {}, "hosts.index=-1"),
        (EXPLICIT, {"BRIDGE_HOST_INDEX": "one"}, None),
        (
            dict(coordinator="10.0.0.1:1234", count=2),
            {"BRIDGE_HOST_INDEX": "one"},
            "BRIDGE_HOST_INDEX='one'",
        ),
        (
            dict(index=1),
            {},
            ("hosts.index=1", "hosts.coordinator=HOST:PORT"),
        ),
        (dict(coordinator="auto", count=4), {}, "hosts.count=4"),
        (
            EXPLICIT | dict(coordinator="10.0.0.1:99999"),
            {},
            ("hosts.coordinator='10.0.0.1:99999'", "1 to 65535"),
        ),
        (
            EXPLICIT | dict(coordinator="10.0.0.1:0"),
            {},
            "hosts.coordinator='10.0.0.1:0'",
        ),
        (dict(timeout_s=1), {}, ("hosts.timeout_s=1", "at least 10")),
    ],
)
def test_invalid_hosts(given, environment, message):
    """Invalid settings are refused with what is allowed."""
    if message is None:
        assert rendezvous.read(rendezvous.Hosts(**given), environment).index == 1
        return
    with errors.raises(ValueError, message):
        rendezvous.read(rendezvous.Hosts(**given), environment)


@pytest.fixture
def nobody_comes(monkeypatch):
    """jax waits in vain for the other hosts, and its settings stay as they are."""
    monkeypatch.setattr(rendezvous, "attempt", lambda *_: concurrent.futures.Future())
    monkeypatch.setattr(type(jax.config), "update", lambda *_: None)


with_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="IPv6 is off here")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("family", [socket.AF_INET, pytest.param(socket.AF_INET6, marks=with_ipv6)])
def test_a_port_that_is_taken(nobody_comes, family, host):
    """jax would crash, or end the run whose host 0 listens there; it listens at both families."""
    with socket.create_server(("", 0), family=family) as taken:
        address = f"{host}:{taken.getsockname()[1]}"
        with errors.raises(ValueError, (address, "host 0", "in use", "port")):
            rendezvous.join(rendezvous.Hosts(address, 2, 0))
    assert not multihost.started()


def test_a_free_port_of_an_ipv6_address(nobody_comes):
    """Host 0 goes on to wait for the others."""
    with socket.create_server(("", 0)) as free:
        address = f"[::1]:{free.getsockname()[1]}"
    with errors.raises(multihost.Lost, ("host 0", "600 s", "not all came")):
        rendezvous.join(rendezvous.Hosts(address, 2, 0))


def test_a_wait_in_which_jax_does_not_find_the_cluster(nobody_comes):
    """Nothing is known of the other hosts: no address and no count are made up."""
    with errors.raises(multihost.Lost, ("hosts.coordinator='auto'", "600 s", "HOST:PORT")) as error:
        rendezvous.join(rendezvous.Hosts("auto"))
    assert "None" not in str(error.value) and "all 1 hosts" not in str(error.value)


def test_what_is_private_in_jax_is_there():
    """Should a version of jax lack it, rendezvous.service is the one place to change."""
    assert rendezvous.service()[2:] == (0, 1)
    from jax._src.lib import _jax

    needed = {
        "get_live_nodes",
        "key_value_delete",
        "key_value_dir_get",
        "key_value_set",
        "wait_at_barrier",
    }
    assert needed <= set(dir(_jax.DistributedRuntimeClient))
    assert jax.config.jax_enable_recoverability is False
    assert jax.config.jax_enable_preemption_service is True
