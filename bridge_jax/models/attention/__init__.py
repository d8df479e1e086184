"""Attention over a row's own keys and, under the same softmax, over those of its prompt.

    reference   the formula, to be read; the oracle of all others
    einsums     "xla": plain einsums; any mask, any device. Scores [B,N,T,S] exist in memory
    splash      the Pallas kernel that jax has for TPUs: scores exist a tile at a time
    cudnn       cuDNN's flash attention on GPUs; bfloat16 alone
    parts       own past and prompt as two calls of a kernel, joined; how cudnn avoids masks
    cudnn_calls cuDNN's call of one part: what is private in jax

    masks       the keys that a query sees
    cache       decoding: one query per row, against its cache, by einsums
    over_mesh   the same on several devices
    choice      the form that model.attention selects on given devices

All compute softmax(q k' / sqrt(H)) v with products summed in fp32. A training or prefill pass is
`causal` over a row's own keys and sees all of its prompt, or as much as a sliding window leaves.
Left out: attention sinks, soft caps, a window inside the splash kernel.
"""

from bridge_jax.models.attention.choice import KINDS, check, choose, form_of
from bridge_jax.models.attention.einsums import causal
