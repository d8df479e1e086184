"""What stands in BRIDGE's step for the compiler's sake changes no number."""

from __future__ import annotations

import jax
import pytest

from bridge_jax.methods import bridge_variants
from bridge_jax.objectives import terms
from tests import toys
from tests.methods.bigram_bridge import advanced, bigram_batch, bigram_method, start

PLAIN = {
    "fusion_boundary": (terms, lambda tree: tree),
    "read_again_after": (bridge_variants, lambda state, G: (state, G)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_form_gives_the_same_state(monkeypatch, name):
    """The identity in place of each boundary, with theta_hat stored as a difference."""

    def after():
        method, _ = bigram_method(shadow__storage="difference", kl_coef=0.1)
        # a new function, since jit keeps what it has traced
        update = jax.jit(lambda *given: method.update(*given))
        return advanced(update, start(method, toys.bigram_theta(), 0.5), 3, bigram_batch)[-1]

    ours, calls = after(), []
    module, plain = PLAIN[name]
    monkeypatch.setattr(module, name, lambda *given: calls.append(name) or plain(*given))
    assert toys.same_bits(ours, after()) and calls
