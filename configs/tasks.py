"""The keys of every task that runs can be trained on, with their defaults; not an experiment itself.

`config.task = tasks.limr(data_dir="...")` in a config file chooses one. From the command line a task cannot be changed for
another, since it has other keys. A test compares each group with the dataclass of its task, key by key.
"""

from ml_collections import ConfigDict

READ = dict(
    data_dir="", prompt="boxed", allow_changed_data=False, traces="", train_size=0, demo_size=0
)
PAPER = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")


def arithmetic(**given) -> ConfigDict:
    """Built in: chains of sums (bridge_jax/tasks/arithmetic.py)."""
    return ConfigDict(
        dict(
            name="arithmetic",
            levels=(2, 3),
            weights=(),
            hard_levels=(),
            train_size=1000,
            demo_size=100,
            eval_size=100,
            dev_size=0,
            corrupt=0.0,
            direct=0.0,
            negative=False,
            style="compact",
            system="",
            shots=0,
            seed=0,
        )
        | given
    )


def knights_knaves(**given) -> ConfigDict:
    """Built in: logic puzzles (bridge_jax/tasks/knights_knaves.py)."""
    return ConfigDict(
        dict(
            name="knights_knaves",
            levels=(3, 4),
            hard_levels=(5, 6),
            train_size=1000,
            demo_size=200,
            eval_size=100,
            prompt="boxed",
            seed=0,
        )
        | given
    )


def gsm8k(**given) -> ConfigDict:
    """Grade-school word problems, judged by their own test set (bridge_jax/tasks/gsm8k.py)."""
    return ConfigDict(dict(name="gsm8k", held_out=()) | READ | given)


def math(**given) -> ConfigDict:
    """MATH, levels 3 to 5 (bridge_jax/tasks/math.py)."""
    return ConfigDict(dict(name="math", levels=(3, 4, 5), held_out=("math500",)) | READ | given)


def limr(**given) -> ConfigDict:
    """The paper's training set and its five benchmarks (bridge_jax/tasks/limr.py)."""
    return ConfigDict(dict(name="limr", held_out=PAPER) | READ | given)
