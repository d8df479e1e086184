"""This process takes itself for one of several hosts."""

from __future__ import annotations

import types

import pytest

from bridge_jax.distributed import multihost


def as_one_of(monkeypatch, index: int, count: int, gather=None) -> None:
    """This process takes itself for one of several; gather: in place of multihost.gather."""
    names = [f"host {i} (node{i})" for i in range(count)]
    monkeypatch.setattr(multihost, "_peers", types.SimpleNamespace(count=count, names=names))
    monkeypatch.setattr(multihost, "_index", index)
    monkeypatch.setattr(
        multihost, "gather", gather or (lambda *_, **__: pytest.fail("asked the others"))
    )
