"""What an error must name for its reader, whatever its sentences are: keys, values, the way out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def raises(kind: type[BaseException], *names) -> Iterator[pytest.ExceptionInfo]:
    """pytest.raises, and the message names all of these: texts, or tuples of texts."""
    with pytest.raises(kind) as error:
        yield error
    assert_names(str(error.value), *names)


def assert_names(message: str, *names) -> None:
    """Each name is in the message as a word of its own: "seed" is not in "seeds", 1 not in 1.5."""
    wanted = [one for name in names for one in (name if isinstance(name, tuple) else (name,))]
    missing = [name for name in wanted if not is_named(message, str(name))]
    assert not missing, f"{missing} not named in: {message}"


def is_named(message: str, name: str) -> bool:
    """Whether the name is in the message as a word of its own."""
    before = r"(?<!\w)(?<!\d\.)" if re.match(r"\w", name) else ""
    after = r"(?!\w)(?!\.\d)" if re.search(r"\w\Z", name) else ""
    return re.search(before + re.escape(name) + after, message) is not None
