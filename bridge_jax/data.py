"""From problems to arrays: tokenizers, the one prompt renderer, and batches whose order is a pure function.

Everything is tokenised once, at start. SFT and RL get their prompts from the same function, `prompt_ids`, so the two
can never see different prompts for one problem. What does not fit (a prompt beyond the largest bucket, a trace beyond
max_new) is left out, named and counted, never cut. Padding is told from lengths, never from an id: pad and end of
sequence may be the same id. Which rows step k reads follows from (seed, stream, position) alone, so a resumed run
needs to remember nothing but the position. Left out: packing, streaming of data that does not fit in memory.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bridge_jax import problems, textfile
from bridge_jax.models import hf_folder
from bridge_jax.types import Problem, Sequences

logger = logging.getLogger(__name__)

EOS = "<eos>"
UNREADABLE = "\ufffd"  # stands for an id that a tokenizer has no text for: it must not vanish between two digits
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
PROBE = "PROBE-OF-THE-TEMPLATE"
# why a problem was left out, by Dropped.part
WHY = {
    "prompt": "prompt longer than {limit} tokens",
    "trace": "trace longer than {limit} tokens",
    "reasoning": "the solution ends inside an open <think>",
    "stop": "the solution holds a stop string, at which a sample would end",
}


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id per character: 0 ends a sequence (and pads), the characters of `alphabet` follow from 1."""

    alphabet: str

    def __post_init__(self):
        if (
            not self.alphabet
            or len(set(self.alphabet)) < len(self.alphabet)
            or not self.alphabet.isascii()
        ):
            raise ValueError(
                f"alphabet={self.alphabet!r}; it must be distinct ASCII characters, at least one"
            )
        if set(EOS) <= set(self.alphabet):
            raise ValueError(
                f"alphabet={self.alphabet!r} can spell {EOS!r}, which ends a sequence in the saved "
                "tokenizer; leave out one of its characters"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.alphabet) + 1

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence; the first is the one that is taught."""
        return (0,)

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; ValueError shows those that the alphabet lacks."""
        ids = [self.alphabet.find(character) + 1 for character in text]
        if 0 in ids:
            unknown = "".join(sorted(set(text) - set(self.alphabet)))
            raise ValueError(
                f"{text!r} has characters that the tokenizer lacks: {unknown!r}. It knows "
                f"{self.alphabet!r}; take another task.style or a larger alphabet"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, to the end; id 0 gives nothing, an id beyond the vocabulary U+FFFD."""
        return "".join(
            self.alphabet[id - 1] if id < self.vocab_size else UNREADABLE for id in ids if id != 0
        )

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        """Prompt ids: what the user says, nothing around it."""
        return self.encode(
            "".join(message["content"] for message in messages if message["role"] == "user")
        )

    def save(self, folder: str | pathlib.Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers.AutoTokenizer loads, into the folder."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        # Bytes without merges, not a word list: transformers 5 rebuilds the tokenizer of a folder whose config.json
        # says qwen2 as byte-level BPE from the vocabulary alone, and drops what is not spelled in its byte letters.
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        letters = [
            "".join(piece for piece, _ in byte_level.pre_tokenize_str(letter))
            for letter in self.alphabet
        ]
        tokenizer = Tokenizer(
            models.BPE({EOS: 0, **{letter: id for id, letter in enumerate(letters, 1)}}, [])
        )
        tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(EOS, normalized=False, special=True)])
        config = dict(
            tokenizer_class="PreTrainedTokenizerFast",
            eos_token=EOS,
            pad_token=EOS,
            unk_token=EOS,
            clean_up_tokenization_spaces=False,
            model_max_length=10**9,
            chat_template="{% for message in messages %}{% if message['role'] == 'user' %}"
            "{{ message['content'] }}{% endif %}{% endfor %}",
        )
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )


@dataclasses.dataclass(frozen=True)
class HFTokenizer:
    """The tokenizer of a model folder (or hub repository); ValueError where there is none or it has no end of sequence.

    Without a chat template a prompt is each message's content and a newline, behind the begin-of-sequence token if the
    tokenizer puts one on. eos_ids: the tokenizer's own token first (the one that is taught), then what the model's
    generation_config.json and config.json name, then the special token that closes an assistant's turn in the template:
    Llama-3's files name <|end_of_text|>, and their turns are closed by <|eot_id|>. No other special token ends a sequence.
    """

    folder: str
    inner: Any = dataclasses.field(init=False, repr=False, compare=False)
    vocab_size: int = dataclasses.field(init=False, compare=False)  # largest id + 1
    eos_ids: tuple[int, ...] = dataclasses.field(init=False, compare=False)

    def __post_init__(self):
        import transformers  # slow to import

        try:
            inner = transformers.AutoTokenizer.from_pretrained(str(self.folder))
        except (OSError, ValueError) as error:
            check_files(self.folder)
            raise ValueError(
                f"no tokenizer in {str(self.folder)!r}: give a folder that holds tokenizer.json and "
                f"tokenizer_config.json, or the name of a hub repository that can be reached ({error})"
            ) from error
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "vocab_size", max(inner.get_vocab().values()) + 1)
        object.__setattr__(self, "eos_ids", self._find_eos())

    def _find_eos(self) -> tuple[int, ...]:
        named = [self.inner.eos_token_id]
        named += [self._named_in(name) for name in ("generation_config.json", "config.json")]
        if self.inner.chat_template:
            talk = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
            turn_end = self.encode(self._templated(talk).rpartition(PROBE)[2].strip())
            # all_special_ids has only those that tokenizer_config.json names for a purpose
            added = self.inner.added_tokens_decoder
            named.append([id for id in turn_end[:1] if id in added and added[id].special])
        flat = itertools.chain.from_iterable(
            ids if isinstance(ids, (list, tuple)) else [ids] for ids in named
        )
        found = tuple(dict.fromkeys(id for id in flat if id is not None))
        if not found:
            raise ValueError(
                f"the tokenizer in {str(self.folder)!r} has no end-of-sequence token, so the model could "
                "never learn to stop; set eos_token in its tokenizer_config.json"
            )
        return found

    def _named_in(self, name: str) -> int | list[int] | None:
        """eos_token_id of a file beside the tokenizer, as it stands there: a config class fills in defaults."""
        import transformers

        path = pathlib.Path(self.folder) / name
        if not pathlib.Path(self.folder).is_dir():
            try:
                path = pathlib.Path(transformers.utils.cached_file(self.folder, name))
            except OSError:
                return None  # a repository of a tokenizer alone
        return hf_folder.read_json(path).get("eos_token_id") if path.is_file() else None

    def _templated(self, messages: list[dict[str, str]], **how) -> str:
        """The chat template's text; ValueError names its file and the way out where it refuses the messages."""
        try:
            return self.inner.apply_chat_template(messages, tokenize=False, **how)
        except Exception as error:  # a template is a program of its own, which raises what it likes
            files = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
            there = [name for name in files if (pathlib.Path(self.folder) / name).is_file()]
            where = str(pathlib.Path(self.folder) / (there or files)[0])
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the chat template in {where} refuses messages of {roles} ({type(error).__name__}: {error}). "
                "If it knows no system role, set task.prompt='user' (evaluate: --prompt=user), or "
                "task.system='' where the task has that key; task.prompt='plain' goes around the template"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it is, nothing put before or after it."""
        return self.inner.encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, to the end; ids that end a sequence give nothing, those beyond the vocabulary U+FFFD."""
        kept = [int(id) for id in ids if id not in self.eos_ids]
        pieces = []
        for known, run in itertools.groupby(kept, key=lambda id: id < self.vocab_size):
            ids = list(run)
            # left to itself, the tokenizer would skip unknown ids and so join what stood apart
            if known:
                pieces.append(self.inner.decode(ids, clean_up_tokenization_spaces=False))
            else:
                pieces.append(UNREADABLE * len(ids))
        return "".join(pieces)

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        """Prompt ids of chat messages, up to where the assistant begins to speak."""
        # a plain text goes around the template, see tasks.plain_messages
        plain = [message["role"] for message in messages] == ["text"]
        if self.inner.chat_template and not plain:
            return self.encode(self._templated(messages, add_generation_prompt=True))
        starts = self.inner.bos_token_id is not None and self.inner.encode("")[:1] == [
            self.inner.bos_token_id
        ]
        text = (
            messages[0]["content"]
            if plain
            else "".join(message["content"] + "\n" for message in messages)
        )
        return [self.inner.bos_token_id] * starts + self.encode(text)

    def save(self, folder: str | pathlib.Path) -> None:
        """Put the tokenizer's files into the folder: the very files where it came from a folder."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not pathlib.Path(self.folder).is_dir():
            self.inner.save_pretrained(str(folder))
            return
        for name in TOKENIZER_FILES:
            source = pathlib.Path(self.folder) / name
            if source.exists() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)


def check_files(folder: str | pathlib.Path) -> None:
    """ValueError for the first file of a tokenizer that is no UTF-8 or no JSON: transformers does not name it."""
    for name in ("config.json", *TOKENIZER_FILES):
        path = pathlib.Path(folder) / name
        if path.is_file() and path.suffix == ".json":
            hf_folder.read_json(path)
        elif path.is_file() and path.suffix in (".jinja", ".txt"):
            textfile.read(path)


def check_vocabulary(tokenizer, model_vocab: int) -> None:
    """ValueError if the tokenizer knows ids that the model has no row for; a larger (padded) vocabulary is fine."""
    needed = max(tokenizer.vocab_size, max(tokenizer.eos_ids) + 1)
    if needed > model_vocab:
        raise ValueError(
            f"the tokenizer uses ids up to {needed - 1}, the model's end at {model_vocab - 1}; "
            "take the tokenizer of this model, or a model with a larger vocabulary"
        )


class Dropped(NamedTuple):
    """A problem that was left out because it does not fit."""

    id: int  # of the problem
    part: str  # a key of WHY
    length: int  # tokens, the end-of-sequence token counted


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Tokenised prompts; row i of all fields is one problem."""

    problems: tuple[Problem, ...]
    tokens: tuple[np.ndarray, ...]  # int32 prompt ids, unpadded


@dataclasses.dataclass(frozen=True)
class Demos:
    """Tokenised demonstrations; row i of all fields is one problem."""

    problems: tuple[Problem, ...]
    tokens: tuple[np.ndarray, ...]  # int32 prompt ids, unpadded
    completions: tuple[np.ndarray, ...]  # int32, the end-of-sequence token is the last


class PromptBatch(NamedTuple):
    """Prompts side by side, numpy."""

    prompt_PS: np.ndarray  # int32, right-padded
    prompt_len_P: np.ndarray  # int32, 1 in a padding row
    ids_P: np.ndarray  # int32 ids of the problems, -1 in a padding row


def prompt_ids(tokenizer, problem: Problem, messages: Callable) -> np.ndarray:
    """THE prompt of a problem, int32 ids: for SFT, RL and evaluation alike."""
    try:
        ids = np.asarray(tokenizer.render(messages(problem)), np.int32)
    except ValueError as error:
        raise ValueError(f"problem {problem.id}: {error}") from error
    if not ids.size:
        raise ValueError(f"problem {problem.id}: the prompt of {problem.question!r} has no token")
    return ids


def template_hash(tokenizer, messages: Callable, question: str = "1+1=") -> str:
    """12 hex digits that change when the rendering of a fixed question does: ids, hence template and tokenizer."""
    return hashlib.sha256(
        prompt_ids(tokenizer, Problem(0, question, "2", "", 0), messages).tobytes()
    ).hexdigest()[:12]


def encode_prompts(
    tokenizer, problems: Sequence[Problem], messages: Callable, buckets: tuple[int, ...]
) -> tuple[Prompts, tuple[Dropped, ...]]:
    """Prompts that fit the largest bucket, and those that do not (with a warning); ValueError when none remains."""
    check_buckets(buckets)
    encoded = [(problem, prompt_ids(tokenizer, problem, messages)) for problem in problems]
    dropped = [
        Dropped(problem.id, "prompt", len(ids))
        for problem, ids in encoded
        if len(ids) > buckets[-1]
    ]
    kept = [(problem, ids) for problem, ids in encoded if len(ids) <= buckets[-1]]
    report(dropped, len(problems), {"prompt": buckets[-1]})
    return Prompts(*zip(*kept)), tuple(dropped)


def encode_demos(
    tokenizer,
    demos: Sequence[Problem],
    messages: Callable,
    buckets: tuple[int, ...],
    max_new: int,
    others: Mapping[int, Sequence[str]] | None = None,
    stop: Sequence[str] = (),
) -> tuple[Demos, tuple[Dropped, ...]]:
    """Demonstrations whose prompt fits the largest bucket and whose trace, end included, max_new; and the others.

    others: further solutions by the id of their problem; the first of all that fits is taken. stop: strings that end a
    sample, which no solution may hold. The problems of the result have the solution that is trained on.
    """
    check_buckets(buckets)
    kept, dropped = [], []
    for problem in demos:
        ids = prompt_ids(tokenizer, problem, messages)
        if len(ids) > buckets[-1]:
            dropped.append(Dropped(problem.id, "prompt", len(ids)))
            continue
        end_of_prompt = tokenizer.decode(ids[-32:])
        refused = []
        for solution in (problem.solution, *(others or {}).get(problem.id, ())):
            solution = behind(end_of_prompt, solution, problem.id)
            completion = completion_ids(tokenizer, solution, problem.id)
            part = unfit(end_of_prompt, solution, len(completion), max_new, stop)
            if not part:
                kept.append((problem._replace(solution=solution), ids, completion))
                break
            refused.append(Dropped(problem.id, part, len(completion)))
        else:
            dropped.append(refused[0])
    report(dropped, len(demos), {"prompt": buckets[-1], "trace": max_new})
    return Demos(*zip(*kept)), tuple(dropped)


def completion_ids(tokenizer, solution: str, id: int) -> np.ndarray:
    """Int32 ids of a solution and the end of the sequence; ValueError where there is none, or one in its midst."""
    trace = tokenizer.encode(solution)
    if not trace or set(trace) & set(tokenizer.eos_ids):
        raise ValueError(
            f"demonstration {id}: the solution must be a text without end-of-sequence tokens, "
            f"one is put behind it; it is {solution!r}"
        )
    return np.asarray([*trace, tokenizer.eos_ids[0]], np.int32)


def behind(prompt: str, solution: str, id: int) -> str:
    """The solution as it continues the prompt, so that its reasoning is opened by one <think>.

    The prompt's template may have opened it, and a trace may lack the opening tag. ValueError where the template has
    closed the reasoning that the solution holds.
    """
    ended = prompt.rstrip()
    if ended.endswith(problems.THINK):
        given = solution.lstrip()
        if not given.startswith(problems.THINK):
            return solution
        rest, space = given.removeprefix(problems.THINK), prompt[len(ended) :]
        return rest[len(os.path.commonprefix([rest, space])) :]
    reasons = problems.THINK in solution or problems.THINK_END in solution
    if reasons and ended.endswith(problems.THINK_END):
        raise ValueError(
            f"demonstration {id}: the chat template closes the reasoning ({problems.THINK_END}) before the model "
            f"speaks, but the solution holds a reasoning: {solution[:80]!r}. Take a template that leaves it to the "
            "model, or solutions without one"
        )
    if reasons and problems.THINK not in solution.partition(problems.THINK_END)[0]:
        return f"{problems.THINK}\n{solution.lstrip()}"
    return solution


def unfit(prompt: str, solution: str, length: int, max_new: int, stop: Sequence[str]) -> str:
    """The key of WHY a solution is no demonstration; "" for one that is."""
    opened = problems.THINK if prompt.rstrip().endswith(problems.THINK) else ""
    if problems.unfinished(opened + solution):
        return "reasoning"
    if any(text in solution for text in stop):
        return "stop"
    return "trace" if length > max_new else ""


def report(dropped: list[Dropped], total: int, limits: dict[str, int]) -> None:
    """Warn of what was left out, the ten longest by name; ValueError if that was everything."""
    for part, why in WHY.items():
        rows = sorted((row for row in dropped if row.part == part), key=lambda row: -row.length)
        if rows:
            named = ", ".join(f"{row.id} ({row.length})" for row in rows[:10]) + ", ..." * (
                len(rows) > 10
            )
            logging.getLogger(__name__).warning(
                "left out %d of %d problems: %s; id (tokens): %s",
                len(rows),
                total,
                why.format(limit=limits.get(part)),
                named,
            )
    if len(dropped) == total:
        lengths = ", ".join(f"{part} at most {limit} tokens" for part, limit in limits.items())
        shortest = min((row.length for row in dropped), default=0)
        parts = collections.Counter(row.part for row in dropped)
        others = [f"of {n} {WHY[part]}; " for part, n in parts.items() if part not in limits]
        raise ValueError(
            f"none of {total} problems remains; {''.join(others)}allowed: {lengths}; shortest left out: "
            f"{shortest}. Raise the limit or take other data"
        )


def check_buckets(buckets: tuple[int, ...]) -> None:
    """ValueError unless buckets are distinct positive lengths in rising order."""
    if not buckets or buckets[0] < 1 or any(b <= a for a, b in zip(buckets, buckets[1:])):
        raise ValueError(
            f"prompt buckets {tuple(buckets)}; allowed: positive, in rising order, such as (64, 128)"
        )


@functools.lru_cache(maxsize=8)
def permutation(seed: int, stream: str, size: int, epoch: int) -> np.ndarray:
    """Order of rows in one epoch. Sorts raw Philox words: numpy promises to keep those, not its `permutation`."""
    words = np.random.Philox(
        np.random.SeedSequence((seed, zlib.crc32(stream.encode()), epoch))
    ).random_raw(size)
    indices = np.argsort(words, kind="stable")
    indices.setflags(write=False)  # it is shared by all who ask again
    return indices


def order(seed: int, stream: str, size: int, start: int, count: int) -> np.ndarray:
    """Rows [start, start + count) of an endless stream of shuffled epochs of `size` rows, int64; a pure function."""
    if size < 1 or start < 0 or count < 0 or not 0 <= seed < 2**32:
        raise ValueError(
            f"order(seed={seed}, size={size}, start={start}, count={count}); allowed: seed in "
            "[0, 2^32), size from 1, start and count from 0"
        )
    epochs = range(start // size, -(-(start + count) // size))
    stream_of_epochs = [permutation(seed, stream, size, epoch) for epoch in epochs]
    return np.concatenate([np.zeros(0, np.int64), *stream_of_epochs])[start % size :][:count]


def padded(rows: Sequence[np.ndarray], width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows side by side [count, width], right-padded with 0, and their lengths [count]; both int32."""
    table, lengths = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
        lengths[i] = len(row)
    return table, lengths


def prompt_batch(
    prompts: Prompts | Demos,
    indices: Sequence[int],
    buckets: tuple[int, ...],
    pad_to: int | None = None,
) -> PromptBatch:
    """Prompts of these rows, padded to the smallest bucket that fits the longest; with pad_to, padding rows follow."""
    count = len(indices) if pad_to is None else pad_to
    if not len(indices) <= count or count < 1:
        raise ValueError(
            f"a batch of {len(indices)} rows cannot be padded to {count}; allowed: at least that, and 1"
        )
    rows = [prompts.tokens[i] for i in indices]
    longest = max(map(len, rows), default=1)
    fitting = [width for width in buckets if width >= longest]
    if not fitting:
        raise ValueError(
            f"a prompt of {longest} tokens does not fit the buckets {tuple(buckets)}; use those that "
            "the prompts were encoded with"
        )
    prompt_PS, prompt_len_P = padded(rows, min(fitting), count)
    ids_P = np.full(count, -1, np.int32)
    ids_P[: len(rows)] = [prompts.problems[i].id for i in indices]
    return PromptBatch(prompt_PS, np.maximum(prompt_len_P, 1), ids_P)


def demo_batch(
    demos: Demos,
    indices: Sequence[int],
    buckets: tuple[int, ...],
    max_new: int,
    pad_to: int | None = None,
) -> Sequences:
    """Demonstrations of these rows, numpy, completions padded to max_new; with pad_to, rows of length 0 follow."""
    prompts = prompt_batch(demos, indices, buckets, pad_to)
    rows = [demos.completions[i] for i in indices]
    longest = max(map(len, rows), default=0)
    if longest > max_new:
        raise ValueError(
            f"a trace of {longest} tokens does not fit max_new={max_new}; use the max_new that the "
            "demonstrations were encoded with"
        )
    tokens_BT, length_B = padded(rows, max_new, len(prompts.ids_P))
    return Sequences(prompts.prompt_PS, prompts.prompt_len_P, tokens_BT, length_B)


def pair(s, prompts: Prompts, demos: Demos) -> tuple[Prompts, Demos]:
    """The prompts that have a demonstration and, in the same order, these; ValueError where a step cannot pair them.

    s: setup.Settings, which is of a higher level.
    """
    if s.batch.demos_per_step != s.batch.prompts_per_step:
        raise ValueError(
            f"method {s.method_name!r} sets an expert beside the samples of every prompt, but "
            f"batch.demos_per_step={s.batch.demos_per_step} is not batch.prompts_per_step="
            f"{s.batch.prompts_per_step}; set one to the other"
        )
    place = {problem.id: i for i, problem in enumerate(demos.problems)}
    kept = [i for i, problem in enumerate(prompts.problems) if problem.id in place]
    if not kept:
        raise ValueError(
            f"method {s.method_name!r} needs demonstrations of the prompts themselves, and task "
            f"{s.task_name!r} has none of them; raise task.demo_size or give task.traces for its problems"
        )
    if len(kept) < len(prompts.problems):
        logger.warning(
            "%s: %d of %d prompts have a demonstration; the others are left out",
            s.method_name,
            len(kept),
            len(prompts.problems),
        )
    order = [place[prompts.problems[i].id] for i in kept]
    pick = lambda rows, places: tuple(rows[i] for i in places)
    return (
        Prompts(pick(prompts.problems, kept), pick(prompts.tokens, kept)),
        Demos(
            pick(demos.problems, order), pick(demos.tokens, order), pick(demos.completions, order)
        ),
    )
