"""Tokenizers: text to ids and back, chat templates, end-of-sequence ids."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from bridge_jax.filesystem import hf_folder, textfile

EOS = "<eos>"
# the text of an unknown id, which must not vanish between two digits
UNREADABLE = "\ufffd"
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
# texts that `count` encodes at a time
COUNTED = 32
# the vocabulary of a tokenizer whose characters a message lists
LISTED = 130


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id per character of `alphabet`, from 1; id 0 ends a sequence and pads."""

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
        """Ids that end a sequence; demonstrations end with the first."""
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
        """Text of all ids; id 0 gives nothing, an id outside the vocabulary U+FFFD."""
        return "".join(
            self.alphabet[id - 1] if id < self.vocab_size else UNREADABLE for id in ids if id != 0
        )

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        """Prompt ids: the user's messages, and plain text (role "text"), alone."""
        asked = [message["content"] for message in messages if message["role"] in ("user", "text")]
        return self.encode("".join(asked))

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the files that transformers.AutoTokenizer loads."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        # Bytes without merges, not a word list: transformers 5 rebuilds the tokenizer of a folder
        # whose config.json says qwen2 as byte-level BPE from the vocabulary alone, and drops what
        # is not spelled in its byte letters.
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
    """The tokenizer of a model folder or hub repository.

    ValueError where there is none, and where it has no end-of-sequence token. Without a chat
    template a prompt is each message's content and a newline, after the begin-of-sequence token if
    the tokenizer adds one. eos_ids: first the tokenizer's own token, with which demonstrations end,
    then those of the model's generation_config.json and config.json, then the special token that
    closes an assistant's turn in the template. Llama 3 needs the last: its files name
    <|end_of_text|>, but its turns are closed by <|eot_id|>. No other special token ends a sequence.
    """

    folder: str
    inner: Any = dataclasses.field(init=False, repr=False, compare=False)
    vocab_size: int = dataclasses.field(init=False, compare=False)  # largest id + 1
    eos_ids: tuple[int, ...] = dataclasses.field(init=False, compare=False)

    def __post_init__(self):
        # slow to import
        import transformers

        try:
            inner = transformers.AutoTokenizer.from_pretrained(str(self.folder))
        except (OSError, ValueError) as error:
            check_files(self.folder)
            raise ValueError(
                f"no tokenizer in {str(self.folder)!r}: give a folder that holds tokenizer.json "
                "and tokenizer_config.json, or the name of a hub repository that can be reached "
                f"({error})"
            ) from error
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "vocab_size", max(inner.get_vocab().values()) + 1)
        object.__setattr__(self, "eos_ids", self._find_eos())

    def _find_eos(self) -> tuple[int, ...]:
        named = [self.inner.eos_token_id]
        named += [self._named_in(name) for name in ("generation_config.json", "config.json")]
        if self.inner.chat_template:
            turn_end = self.encode(self._behind_a_turn().strip())
            # all_special_ids has only those that tokenizer_config.json names for a purpose
            added = self.inner.added_tokens_decoder
            named.append([id for id in turn_end if id in added and added[id].special][:1])
        flat = itertools.chain.from_iterable(
            ids if isinstance(ids, (list, tuple)) else [ids] for ids in named
        )
        found = tuple(dict.fromkeys(id for id in flat if id is not None))
        if not found:
            raise ValueError(
                f"the tokenizer in {str(self.folder)!r} has no end-of-sequence token, so the model "
                "could never learn to stop; set eos_token in its tokenizer_config.json"
            )
        return found

    def _behind_a_turn(self) -> str:
        """The text that the template appends to an assistant's message.

        "" where the template changes the message or has no assistant role. ValueError for a
        template that renders nothing at all.
        """
        system, user, assistant = (
            {"role": role, "content": PROBE} for role in ("system", "user", "assistant")
        )
        refusal = None
        for messages in ([user, assistant], [system, user, assistant], [user]):
            try:
                text = self._templated(messages)
            except ValueError as error:
                refusal = refusal or error
                continue
            known = assistant in messages and PROBE in text
            return text.rpartition(PROBE)[2] if known else ""
        raise refusal

    def _named_in(self, name: str) -> int | list[int] | None:
        """eos_token_id of a JSON file next to the tokenizer, without a config class's defaults."""
        import transformers

        path = pathlib.Path(self.folder) / name
        if not pathlib.Path(self.folder).is_dir():
            try:
                path = pathlib.Path(transformers.utils.cached_file(self.folder, name))
            except OSError:
                # a repository of a tokenizer alone
                return None
        return hf_folder.read_json(path).get("eos_token_id") if path.is_file() else None

    def _templated(self, messages: list[dict[str, str]], **how) -> str:
        """The messages as the chat template renders them.

        Where the template fails, a ValueError names its file and the remedies.
        """
        try:
            return self.inner.apply_chat_template(messages, tokenize=False, **how)
        # a template is a program, which may raise any error
        except Exception as error:
            files = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
            there = [name for name in files if (pathlib.Path(self.folder) / name).is_file()]
            where = str(pathlib.Path(self.folder) / (there or files)[0])
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the chat template in {where} refuses messages of {roles} "
                f"({type(error).__name__}: {error}). If it knows no system role, set "
                "task.prompt='user' (evaluate: --prompt=user), or task.system='' where the task "
                "has that key; task.prompt='plain' goes around the template"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without special tokens around it."""
        return self.inner.encode(text, add_special_tokens=False)

    def count(self, texts: list[str]) -> list[int]:
        """The number of ids of each text, as of `encode`; computed by all processors."""
        found = []
        # in parts, since a tokenizer keeps a record of each token of a call
        for start in range(0, len(texts), COUNTED):
            ids = self.inner(
                texts[start : start + COUNTED],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            found += map(len, ids)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Text of all ids; end-of-sequence ids give nothing, ids outside the vocabulary U+FFFD."""
        kept = [int(id) for id in ids if id not in self.eos_ids]
        pieces = []
        for known, run in itertools.groupby(kept, key=lambda id: id < self.vocab_size):
            ids = list(run)
            # the tokenizer would skip unknown ids and thereby join their neighbours
            if known:
                pieces.append(self.inner.decode(ids, clean_up_tokenization_spaces=False))
            else:
                pieces.append(UNREADABLE * len(ids))
        return "".join(pieces)

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        """Prompt ids of chat messages, up to the beginning of the assistant's message."""
        # plain text does not pass through the template, see tasks.plain_messages
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
        """Writes the tokenizer's files into the folder; copies them where it came from a folder."""
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
    """ValueError names the first file that is not UTF-8 or not JSON.

    Transformers does not name it.
    """
    for name in ("config.json", *TOKENIZER_FILES):
        path = pathlib.Path(folder) / name
        if path.is_file() and path.suffix == ".json":
            hf_folder.read_json(path)
        elif path.is_file() and path.suffix in (".jinja", ".txt"):
            textfile.read(path)


def check_vocabulary(tokenizer, model_vocab: int) -> None:
    """ValueError if the tokenizer has ids beyond the model's vocabulary, which may be larger."""
    needed = max(tokenizer.vocab_size, max(tokenizer.eos_ids) + 1)
    if needed > model_vocab:
        raise ValueError(
            f"the tokenizer uses ids up to {needed - 1}, the model's end at {model_vocab - 1}; "
            "take the tokenizer of this model, or a model with a larger vocabulary"
        )


def characters_kept(tokenizer, text: str) -> int:
    """How many characters of the text are still there after encoding and decoding, in any order."""
    decoded = tokenizer.decode(tokenizer.encode(text))
    return (collections.Counter(text) & collections.Counter(decoded)).total()


def known_characters(tokenizer) -> str:
    """The characters of a small tokenizer as the end of a message; "" for a larger one."""
    if tokenizer.vocab_size > LISTED:
        return ""
    known = "".join(sorted(set(tokenizer.decode(range(tokenizer.vocab_size)))))
    return f"; the tokenizer knows the characters {known!r}"
