"""The text tokenizer: byte-level BPE as Qwen2 uses it, loaded from a file or trained on the spot."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import read_json
from vita_audio_pl.text.vocabulary import Vocabulary, code_token, special_tokens

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CONTROL = (END_OF_TEXT, IM_START, IM_END)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""What `Renderer.prompt` writes of messages that are text, for transformers and engines."""
_BYTES = 256
_LARGEST_FILE = 64 << 20  # bytes; Qwen2's has 7 million

# Qwen2's split into words, single digits, punctuation and blanks (transformers, Qwen2 tokenizer; Apache-2.0)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """Text to ids and back, without special and audio tokens; `vocabulary` assigns their ids after the text's.

    Text that spells a control token, such as `<|im_end|>`, is encoded character by character, so user input can never
    end a turn.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        missing = [token for token in _CONTROL if token not in vocabulary]
        if missing:
            raise UserError(f"the tokenizer has no {', '.join(missing)}; use the one of a Qwen2.5 or Qwen3 model")
        self.n_text = max(vocabulary.values()) + 1
        self.pad, self.im_start, self.im_end = (vocabulary[token] for token in _CONTROL)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TextTokenizer":
        """Load a `tokenizer.json` or a folder with one; a published VITA-Audio tokenizer is reduced to its text part.

        Raises:
            UserError: no such file, not a tokenizer, no Qwen2 control tokens, or audio tokens in an unexpected order.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.exists():
            raise UserError(f"there is no tokenizer at {file}; give a tokenizer.json or the folder that holds one")
        description = read_json(file, largest=_LARGEST_FILE)
        try:
            description["added_tokens"] = _text_part(description["added_tokens"], str(file))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is not a usable tokenizer.json ({error!r}); get it again from the model's home"
            ) from error
        # a text is encoded in full: truncation and padding in the file are disabled
        description |= {"truncation": None, "padding": None}
        try:
            return cls(Tokenizer.from_str(json.dumps(description)))
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and its panics are not even that
            raise UserError(f"{file} cannot be read as a tokenizer: {' '.join(str(error).split())[:200]}") from error

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str] | None = None
    ) -> "TextTokenizer":
        """Train byte-level BPE with Qwen2's pre-tokenisation; deterministic in the texts.

        Args:
            texts: training texts.
            vocab_size: most entries, including `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`.
            path: folder to save to, if given.

        Raises:
            UserError: `vocab_size` cannot hold the 256 bytes and the three control tokens.
        """
        if vocab_size < _BYTES + len(_CONTROL):
            raise UserError(
                f"a text vocabulary of {vocab_size} is too small: 256 bytes and {len(_CONTROL)} control tokens need "
                f"{_BYTES + len(_CONTROL)}"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(_CONTROL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _CONTROL])
        trained = cls(tokenizer)
        if path is not None:
            trained.save(path)
        return trained

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` and a `tokenizer_config.json` with which transformers loads it as Qwen2's."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": IM_END, "pad_token": END_OF_TEXT}
        config["chat_template"] = _CHAT_TEMPLATE
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with nothing added; spelled control tokens stay ordinary characters."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control, special and audio tokens are skipped.

        An incomplete multi-byte character is shown as U+FFFD.
        """
        text: str = self._tokenizer.decode([int(i) for i in ids if 0 <= i < self.n_text], skip_special_tokens=True)
        return text

    def written_out(self, ids: Sequence[int], vocabulary: Vocabulary) -> str:
        """Text of `ids` with every control, special and audio token spelled out, for display."""
        pieces: list[str] = []
        run: list[int] = []
        for id in [*(int(i) for i in ids), None]:
            name = None if id is None else vocabulary.token(id)
            if id is not None and name is None:
                run.append(id)
                continue
            pieces.append(self._tokenizer.decode(run, skip_special_tokens=False))
            pieces.append(name or "")
            run = []
        return "".join(pieces)

    def vocabulary(self, n_codes: int, continuous_input: bool = False) -> Vocabulary:
        """The whole vocabulary: this text part, the special tokens and `n_codes` audio codes."""
        return Vocabulary(
            self.n_text,
            n_codes,
            continuous_input,
            im_start=self.im_start,
            im_end=self.im_end,
            pad=self.pad,
            text_fingerprint=self.fingerprint,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that encode equally (16 hex digits); special and audio tokens do not count."""
        description = json.loads(self._tokenizer.to_str())
        parts = {
            "vocabulary": sorted(self._tokenizer.get_vocab(with_added_tokens=True).items()),
            "merges": description["model"]["merges"],
            "normalizer": description["normalizer"],
            "pre_tokenizer": description["pre_tokenizer"],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {"description": self._tokenizer.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state["description"]))  # type: ignore[misc]  # not of a subclass


def _text_part(added: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Added tokens without the special and audio ones, which must follow the text in the published order."""
    ids = {token["content"]: token["id"] for token in added}
    for continuous_input in (False, True):
        specials = special_tokens(continuous_input)
        first = ids.get(specials[0])
        if first is None:
            return added
        n_codes = sum(content.startswith("<|audio_") for content in ids)
        expected = [*specials, *(code_token(code) for code in range(n_codes))]
        if [ids.get(token) for token in expected] == list(range(first, first + len(expected))):
            return [token for token in added if token["id"] < first]
    raise UserError(
        f"{where} has audio tokens in an order that is not VITA-Audio's; use the text model's own tokenizer.json"
    )
