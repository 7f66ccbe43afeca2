"""Text to token ids and back, and chat templates, without transformers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lutllm.artifact import read_json
from lutllm.errors import CheckpointError
from lutllm.pages import trim_heap

#: What a decoder prints for bytes that are not, or not yet, a character.
_REPLACEMENT = "\ufffd"
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class Tokenizer:
    """The tokenizer of a checkpoint or an artifact.

    vocab_size  one more than the largest token id
    eos_ids     tokens that end a text or a chat turn
    bos_id      the beginning-of-text token, if the tokenizer names one
    """

    def __init__(
        self,
        core: Any,
        special_tokens: dict[str, str],
        chat_template: str | None,
        eos_ids: Iterable[int],
    ):
        self._core = core
        self._special = special_tokens
        self._template_source = chat_template
        self._template: Any = None
        self.eos_ids: tuple[int, ...] = tuple(sorted(set(eos_ids)))
        self.bos_id: int | None = self.token_id(special_tokens.get("bos_token", ""))
        self.vocab_size: int = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json and the configuration files beside it."""
        import tokenizers

        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: file not found; the folder has no usable tokenizer")
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as cause:  # the library raises bare Exception
            raise CheckpointError(f"{path}: not a valid tokenizer ({cause})") from None
        trim_heap()  # parsing took as much again as the tokenizer: 40 MB with 150,000 words
        core.no_truncation()
        core.no_padding()
        config = _read_optional(folder / "tokenizer_config.json")
        special = {n: t for n in _SPECIAL_NAMES if (t := _token_text(config.get(n)))}
        eos = _eos_ids(folder, core.token_to_id(special.get("eos_token", "")))
        return cls(core, special, _chat_template(folder, config), eos)

    def token_id(self, token: str) -> int | None:
        """The id of a token given as text, None if there is no such token."""
        return self._core.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Special tokens written in it are recognized, none are added."""
        return self._core.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that begins here: with a leading bos where the model expects one."""
        ids = self._core.encode(text, add_special_tokens=True).ids
        while ids and ids[-1] in self.eos_ids:  # some tokenizers also close the text
            ids = ids[:-1]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self._core.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder(self)

    @property
    def has_chat_template(self) -> bool:
        return self._template_source is not None

    def apply_chat(
        self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt text of a chat. messages: [{"role": "user", "content": "..."}, ...]."""
        import jinja2

        if self._template_source is None:
            raise CheckpointError("the tokenizer has no chat template; pass a plain prompt instead")
        try:
            if self._template is None:
                self._template = _chat_environment().from_string(self._template_source)
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as cause:
            raise CheckpointError(f"chat template: {cause}") from None


class StreamDecoder:
    """Turns tokens into text as they arrive; characters are only given out whole.

    for token in tokens:
        print(decoder.push(token), end="")
    print(decoder.finish())
    """

    def __init__(self, tokenizer: Tokenizer):
        self._decode = tokenizer.decode
        self._context: list[int] = []  # tokens before, decoded alike with what follows them
        self._context_chars = 0
        self._pending: list[int] = []
        self._sent = 0

    def push(self, token: int) -> str:
        """Add one token; returns the text that is complete now, possibly empty."""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)[self._context_chars :]
        whole = text.removesuffix(_REPLACEMENT)
        out = whole[self._sent :]
        if whole == text:
            self._context, self._pending, self._sent = self._pending, [], 0
            self._context_chars = len(self._decode(self._context))
        else:
            self._sent = max(self._sent, len(whole))
        return out

    def finish(self) -> str:
        """What is left at the end: a replacement character for an incomplete one."""
        text = self._decode(self._context + self._pending)[self._context_chars :]
        out = text[self._sent :]
        self._context, self._pending = self._context + self._pending, []
        self._context_chars, self._sent = self._context_chars + len(text), 0
        return out


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path, CheckpointError) if path.is_file() else {}


def _token_text(value: Any) -> str | None:
    """A token is stored as its text, or as an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _eos_ids(folder: Path, named: int | None) -> list[int]:
    """Ids that end a text, from the three files that may name them."""
    out = [] if named is None else [named]
    for name in ("generation_config.json", "config.json"):
        value = _read_optional(folder / name).get("eos_token_id")
        for index in value if isinstance(value, list) else [value]:
            if isinstance(index, int) and not isinstance(index, bool):
                out.append(index)
    return out


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template from its own file, or from tokenizer_config.json (text, or named variants)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as cause:
            raise CheckpointError(f"{path}: not a text file ({cause})") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _chat_environment() -> Any:
    """The sandbox in which Hugging Face renders chat templates, with the same helpers."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
