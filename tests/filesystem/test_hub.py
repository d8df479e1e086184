"""The hub is asked once, and its errors are one line that says the way out."""

from __future__ import annotations

import types

import datasets
import httpx2
import huggingface_hub
import pytest

from bridge_jax.filesystem import hub


def http_error(kind: type, code: int) -> Exception:
    """An error as the hub's client makes it for an answer with this status."""
    request = httpx2.Request("GET", "https://huggingface.co/api/models/a/b")
    return kind("401 Client Error.\n\nlong text", response=httpx2.Response(code, request=request))


ABSENT = http_error(huggingface_hub.errors.RepositoryNotFoundError, 401)
GATED = http_error(huggingface_hub.errors.GatedRepoError, 403)
NO_NETWORK = httpx2.ConnectError("[Errno -2] Name or service not known")


def caused(error: Exception, cause: Exception) -> Exception:
    """The error with a cause."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, message, network, absent",
    [
        (ABSENT, "the hub has no such name, or it is private: check the name, or set", False, True),
        (GATED, "it is gated: accept its terms at https://huggingface.co/a/b and", False, True),
        (NO_NETWORK, "cannot be reached ([Errno -2] Name or service not known)", True, False),
        (
            caused(
                huggingface_hub.errors.LocalEntryNotFoundError("An error\nhappened"), NO_NETWORK
            ),
            "cannot be reached ([Errno -2] Name or service not known)",
            True,
            False,
        ),
        (TypeError("changed\nlayout"), "TypeError: changed", False, False),
        (TypeError(), "TypeError: TypeError", False, False),
    ],
)
def test_reasons_are_one_line(error, message, network, absent):
    """Of each kind of error; also of one that another kind caused."""
    text = hub.reason(error, "a/b")
    assert message in text and "\n" not in text
    assert (hub.is_network(error), hub.is_absent(error)) == (network, absent)


def test_a_look_up_is_one_request(monkeypatch):
    """With a limit of time; the commit is returned, or the error."""
    asked = []

    class Api:
        def repo_info(self, name, repo_type, revision, timeout):
            asked.append((name, repo_type, revision, timeout))
            if name == "a/b":
                raise NO_NETWORK
            return types.SimpleNamespace(sha="c0ffee")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub.look_up("a/b", "dataset") == (None, NO_NETWORK)
    assert hub.look_up("c/d", "model", "v1") == ("c0ffee", None)
    assert asked == [
        ("a/b", "dataset", None, hub.TIMEOUT_S),
        ("c/d", "model", "v1", hub.TIMEOUT_S),
    ]


def test_offline_reads_caches_alone_and_is_undone():
    """Both clients, at once, also after an error; not where there is a network."""
    state = lambda: (huggingface_hub.is_offline_mode(), datasets.config.HF_HUB_OFFLINE)
    before = state()
    with hub.offline(False):
        assert state() == before
    with pytest.raises(KeyError), hub.offline(True):
        assert state() == (True, True)
        with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
            huggingface_hub.HfApi().repo_info("a/b")
        raise KeyError
    assert state() == before
