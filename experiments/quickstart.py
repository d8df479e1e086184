"""Quick start: `python -m experiments.quickstart --out=DIR` trains sft, grpo and bridge from one
base model.

It trains the base (configs/quickstart.py:base), exports it as an ordinary HF folder, and trains
each method from it for the same number of steps, prompts, samples and demos. Then it prints a table
and draws the reward curves. Finished runs are not repeated. There is one seed: it shows how the
project works, and is no evidence for a ranking. Intervals are over problems, for these models.
"""

from __future__ import annotations

import io
import logging
import pathlib
import time

from absl import flags

from bridge_jax.evaluation import intervals
from bridge_jax.filesystem import files
from bridge_jax.rundir import logbook
from bridge_jax.training import trainer
from bridge_jax.training.export import export
from configs import quickstart
from experiments.cli import (
    define_path,
    fail,
    fail_by,
    keep_freed_memory,
    leave,
    log_to_stderr,
    run_command,
    use_compilation_cache,
)

METHODS = ("sft", "grpo", "bridge")
COLUMNS = (
    "method",
    "accuracy [95% interval]",
    "reward",
    "seconds",
    "generated tokens",
    "demo tokens",
)


def run(out: pathlib.Path) -> dict[str, list[dict]]:
    """Train the base and every method in out; the metrics of each method, one dict a step."""
    model = out / "base_model"
    trained(quickstart.get_config("base"), out / "base")
    if not model.exists():
        export(str(out / "base"), str(model))
    for method in METHODS:
        config = quickstart.get_config(method)
        config.model.path = str(model)
        trained(config, out / method)
    return {method: logbook.read(str(out / method)) for method in METHODS}


def trained(config, folder: pathlib.Path) -> None:
    """Train to the end; a signal ends the program, since the next step needs the finished run."""
    if trainer.train(config, str(folder))["stopped"]:
        leave()


def table(metrics: dict[str, list[dict]]) -> str:
    """Aligned rows: held-out accuracy, mean reward of the last ten steps, seconds, tokens."""
    first = metrics["sft"][0]
    rows = [COLUMNS, ("base", accuracy(first), "", "", "", "")]
    for method, lines in metrics.items():
        last = lines[-1]
        rewards = [line["reward/mean"] for line in lines[-10:] if "reward/mean" in line]
        rows.append(
            (
                method,
                accuracy(last),
                f"{sum(rewards) / len(rewards):.3f}" if rewards else "samples none",
                f"{last['time/train_s']:.0f}",
                f"{last.get('budget/generated_tokens', 0):,.0f}",
                f"{last.get('budget/demo_tokens', 0):,.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def bounds(line: dict) -> intervals.Bounds:
    """Held-out accuracy and its 95% interval over problems."""
    share, n = line["eval/held_out_accuracy"], line["eval/held_out_n"]
    return intervals.of_shares(share, share * (1 - share), n)


def accuracy(line: dict) -> str:
    """Held-out accuracy and its 95% interval over problems."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*bounds(line))


def draw(metrics: dict[str, list[dict]], path: pathlib.Path) -> None:
    """Two panels over steps: reward of the samples; greedy held-out accuracy and its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (method, lines) in enumerate(metrics.items()):
        sampled = [line for line in lines if "reward/mean" in line]
        judged = [line for line in lines if "eval/held_out_accuracy" in line]
        colour = f"C{number}"
        if sampled:
            left.plot(
                [line["step"] for line in sampled],
                [line["reward/mean"] for line in sampled],
                colour,
                label=method,
            )
        steps, found = [line["step"] for line in judged], [bounds(line) for line in judged]
        right.plot(
            steps, [one.mean for one in found], colour, marker="o", markersize=4, label=method
        )
        low, high = [one.low for one in found], [one.high for one in found]
        right.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    left.set(
        title="mean reward of the samples (sft samples none)", xlabel="step", ylabel="share correct"
    )
    right.set(title="held-out accuracy, greedy, 95% over problems", xlabel="step", ylim=(0, 1))
    left.legend()
    right.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    pyplot.close(figure)
    files.replace(path, drawn.getvalue())


def main(argv: list[str]) -> None:
    """Run, print, draw."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; the flag is --out")
    log_to_stderr()
    use_compilation_cache()
    keep_freed_memory()
    began, out = time.monotonic(), pathlib.Path(flags.FLAGS.out)
    # it warns that level 1 has few problems, which is known here
    logging.getLogger("bridge_jax.tasks").setLevel(logging.ERROR)
    try:
        metrics = run(out)
        draw(metrics, out / "rewards.png")
    except (ValueError, OSError, RuntimeError) as error:
        fail_by(error)
    print(
        f"\n{table(metrics)}\n\nreward curves: {out / 'rewards.png'}\n"
        f"{time.monotonic() - began:.0f} seconds in all"
    )


def define_flags() -> None:
    """The flags of this command."""
    define_path("out", "runs/quickstart", "where the runs, the base model and the picture go")


if __name__ == "__main__":
    define_flags()
    run_command(main)
