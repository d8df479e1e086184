"""Export: `python -m experiments.export --workdir=RUN --out=HF_DIR [--what=merged|base|adapter]`.

Writes the newest checkpoint of a run as a Hugging Face folder, in fp32: `merged` is the policy that was trained and
evaluated (theta + w, or theta where a method has no adapter), `base` theta alone, `adapter` w for PEFT. BRIDGE trains
theta too: its adapter belongs on its `base`, not on the model that the run began with.
The folder appears under its name only after it was read back bit for bit and, where torch is installed, after
transformers gave the same logits on a prompt of the task.
"""
from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from experiments.train import fail, log_to_stderr

KINDS = ("merged", "base", "adapter")
TOLERANCE = 1e-4  # of a logit in fp32, times the largest of them where that is above 1
RUN = flags.DEFINE_string("run", None, "another name of --workdir")
OUT = flags.DEFINE_string("out", None, "the folder to make; it must not exist, or be empty")
WHAT = flags.DEFINE_enum("what", "merged", KINDS, "theta + w, theta alone, or w alone for PEFT")
