"""The Hugging Face hub: one quick look-up before a download, and its errors in one line.

The hub's clients try a request six times before they give up, 24 seconds without a network.
`look_up` asks once. Where it finds no network, `offline` lets them read what an earlier download
left on disk.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

# of the one request of a look-up
TIMEOUT_S = 10.0
# errors of the network, by name: hub clients of different versions rest on different libraries
NETWORK = {"ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "Timeout"}
NETWORK |= {"TimeoutException", "ConnectTimeoutError", "NameResolutionError", "ProxyError"}
NETWORK |= {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "NetworkError", "gaierror"}


def look_up(name: str, kind: str, revision: str = "") -> tuple[str | None, Exception | None]:
    """(commit, None) of a repository that the hub has, else (None, the error of asking once).

    kind: "model" or "dataset". revision: a commit, branch or tag; "": the newest.
    """
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().repo_info(
            name, repo_type=kind, revision=revision or None, timeout=TIMEOUT_S
        )
    except Exception as error:
        return None, error
    return found.sha, None


@contextlib.contextmanager
def offline(is_offline: bool) -> Iterator[None]:
    """The hub's clients read their caches alone, if is_offline."""
    places = ("huggingface_hub.constants", "datasets.config") if is_offline else ()
    modules = [importlib.import_module(place) for place in places]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before):
            module.HF_HUB_OFFLINE = value


def kinds(error: BaseException) -> set[str]:
    """Names of the classes of an error and of those that caused it."""
    found: set[str] = set()
    while error is not None:
        found |= {one.__name__ for one in type(error).__mro__}
        error = error.__cause__ or error.__context__
    return found


def is_absent(error: BaseException) -> bool:
    """Whether the hub answered that it will not give the repository."""
    return "RepositoryNotFoundError" in kinds(error)


def is_network(error: BaseException) -> bool:
    """Whether the hub did not answer."""
    return not is_absent(error) and bool(kinds(error) & NETWORK)


def reason(error: BaseException, name: str, cached: bool = True) -> str:
    """Why the hub did not give a repository, in one line; cached: earlier downloads would do."""
    found = kinds(error)
    if "GatedRepoError" in found:
        return (
            f"it is gated: accept its terms at https://huggingface.co/{name} and set HF_TOKEN to a "
            "token of yours"
        )
    if is_absent(error):
        return "the hub has no such name, or it is private: check the name, or set HF_TOKEN"
    if is_network(error):
        nor_cached = ", and no earlier download is on disk" if cached else ""
        return f"the hub cannot be reached ({first_line(error)}){nor_cached}"
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of the innermost error's text, which says most."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
