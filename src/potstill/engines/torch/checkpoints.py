"""Read a model reference: its config, its tokenizer, and the base model of an adapter.

A reference is a folder or a Hub model ID: a causal language model, a vision-language model whose
language part is one (its text model is used), or a PEFT adapter, which names its base. Everything
else is refused here, with its kind and what to do. Weights are loaded in `loading`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from potstill.engines.model_files import check_text, read_json
from potstill.engines.torch.config_checks import check_adapter, check_config, check_ids
from potstill.errors import PotstillError, out_of_memory

FOLDER = "give a folder with config.json, tokenizer files and *.safetensors"
HUB = f"{FOLDER}, or a hub name that this machine can reach (gated models need `hf auth login`)"
PARTS = {"AutoConfig": "the config of ", "AutoTokenizer": "the tokenizer of "}
SAMPLE = "Tom has 12."
ALWAYS_DECODERS = "gpt_neox", "gpt_neox_japanese"  # their code does not read is_decoder
# Where a vision-language model keeps the weights of its text model.
TEXT_PART = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.text_model\.": "model.",
}


@dataclass(frozen=True)
class Checkpoint:
    """A model reference whose files are read when they are needed.

    Args:
        name: as it was given.
        trust: run code that comes with the model.
        base: the model that has the weights: of an adapter, the one that it names.
        adapter: its settings; empty if the reference is a whole model.
    """

    name: str
    trust: bool = False
    base: str = ""
    adapter: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def find(cls, name: str, trust: bool = False) -> Checkpoint:
        """Look whether a reference is an adapter; reads no weights."""
        adapter = _adapter(name)
        if not adapter:
            return cls(name, trust, name)
        check_adapter(name, adapter)
        kind, base = adapter.get("peft_type", "LORA"), adapter.get("base_model_name_or_path")
        if (Path(name).expanduser() / "config.json").is_file():
            raise PotstillError(
                f'"{name}" is a whole model and an adapter: it has config.json and '
                "adapter_config.json",
                "move the adapter's files to a folder of their own, and name one of the two",
            )
        if kind not in ("LORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT"):
            raise PotstillError(
                f'the adapter "{name}" is of kind {kind}, which cannot be merged into weights',
                "give a LoRA adapter, or a whole model",
            )
        if not isinstance(base, str) or not base:
            raise PotstillError(
                f'the adapter "{name}" does not name its base model',
                "write base_model_name_or_path into adapter_config.json",
            )
        if _adapter(base):
            raise PotstillError(
                f'the base of the adapter "{name}" is an adapter too: "{base}"',
                "merge the base first: PeftModel.from_pretrained(...).merge_and_unload()",
            )
        return cls(name, trust, base, adapter)

    @cached_property
    def whole_config(self) -> Any:
        """The config of the model, the vision part included."""
        if self.adapter and _is_path(self.base) and not Path(self.base).expanduser().is_dir():
            raise PotstillError(
                f'the adapter "{self.name}" is based on "{self.base}", which does not exist',
                "put the base model there, or correct base_model_name_or_path in "
                "adapter_config.json",
            )
        raw = self.stored("config.json")
        check_config(self.base, raw, self.trust)
        return read_pretrained(AutoConfig, self.base, trust_remote_code=self.trust)

    @cached_property
    def config(self) -> Any:
        """The config of the text model, which is what the engine loads.

        Raises:
            PotstillError: the model is not a causal language model.
        """
        config = self.whole_config
        kind, remote = config.model_type, getattr(config, "auto_map", None) or {}
        if config.is_encoder_decoder:
            self._refuse(f"an encoder-decoder model ({kind})", "potstill distils decoders")
        if "AutoModelForCausalLM" in remote and self.trust:
            return config
        text = config.get_text_config(decoder=True)
        bidirectional = getattr(text, "use_bidirectional_attention", False) or kind == "xlnet"
        decodes = getattr(config, "causal" if kind == "xlm" else "is_decoder", None)
        if (decodes is False and kind not in ALWAYS_DECODERS) or bidirectional:
            self._refuse(f"an encoder ({kind}): its tokens read the ones after them", "")
        if text is not config and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
            if config.tie_word_embeddings:  # then the file has no head
                text.tie_word_embeddings = True
            return text
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return config
        if text is not config:
            self._refuse(
                f"a model of several kinds of input ({kind}), and transformers has no causal "
                f"language model for its text part ({text.model_type})",
                "save its text model alone",
            )
        self._refuse(f"not a causal language model ({kind})", "")

    @property
    def text_part(self) -> bool:
        """True if the text model of a larger one is used."""
        return self.config is not self.whole_config

    def _refuse(self, kind: str, hint: str) -> None:
        hint = f"{hint}: " if hint else ""
        raise PotstillError(
            f'"{self.name}" is {kind}',
            f"{hint}give a causal language model, such as Qwen3 or Llama",
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the adapter's folder if it has one, else of the base."""
        own = self.adapter and _file(self.name, "tokenizer_config.json")
        name = self.name if own else self.base
        _check_tokenizer_files(name)
        try:
            tokenizer = read_pretrained(AutoTokenizer, name, trust_remote_code=self.trust)
        except PotstillError as error:
            raise _without_tokenizer(name, error) from error
        try:
            special = {*tokenizer.all_special_tokens, *tokenizer.all_special_ids}
            tokenizer(SAMPLE, add_special_tokens=False)
        except Exception as error:  # of its settings
            raise PotstillError(
                f'the tokenizer of "{name}" reads no text: {_reason(error)}',
                "copy the tokenizer files of the original model into the folder",
            ) from error
        if not set(tokenizer.get_vocab()) - special:
            raise PotstillError(
                f'the tokenizer of "{name}" has special tokens only: its vocabulary is missing',
                "copy tokenizer.json (or tokenizer.model) of the original model into the folder",
            )
        if not tokenizer.chat_template and (file := _file(name, "chat_template.json")):
            tokenizer.chat_template = read_json(Path(file)).get("chat_template")
        if not isinstance(tokenizer.chat_template, str | dict | None):
            raise PotstillError(
                f'the chat template of "{name}" is a text, got {tokenizer.chat_template!r}',
                "correct chat_template in tokenizer_config.json, or remove it",
            )
        return tokenizer

    @property
    def rows(self) -> int:
        """Number of ids that the embedding and the head have."""
        size = getattr(self.config, "vocab_size", None)
        if not isinstance(size, int):
            raise PotstillError(
                f'the config of "{self.name}" has no vocab_size', "write it into config.json"
            )
        return size

    @property
    def sampled_rows(self) -> int:
        """Number of ids that may be sampled: an export lists the padding rows of its head."""
        listed = self.generation.get("suppress_tokens") or []
        tail = list(range(self.rows - len(listed), self.rows))
        return tail[0] if listed and listed == tail else self.rows

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The object in generation_config.json; empty if there is none."""
        table = self.stored("generation_config.json")
        path = Path(self.name) / "generation_config.json"
        check_ids(path, "eos_token_id", table.get("eos_token_id"))
        check_ids(path, "suppress_tokens", table.get("suppress_tokens"), several=True)
        return table

    def stored(self, file: str) -> dict[str, Any]:
        """A JSON file of the adapter or else of the base; empty if there is none."""
        for name in dict.fromkeys((self.name, self.base)):
            if path := _file(name, file):
                return read_json(Path(path))
        return {}


def read_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Call `from_pretrained`, and turn its errors into a `PotstillError` with a hint."""
    try:
        return kind.from_pretrained(name, **options)
    except (PotstillError, MemoryError):
        raise
    except Exception as error:  # of the files, which come from a user
        if out_of_memory(error):
            raise
        part = PARTS.get(getattr(kind, "__name__", ""), "")
        raise PotstillError(
            f'cannot read {part}"{name}": {_reason(error)}', _hint(name, error)
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, with the next one if that has the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, TypeError | AttributeError | LookupError):
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason'}"
    return " ".join(lines[: 1 + lines[0].endswith(":")])


def _hint(name: str, error: Exception) -> str:
    text = str(error)
    if isinstance(error, ImportError):
        return "install what it names, or choose a model that does without"
    if "attn_implementation" in text or "attention implementation" in text:
        return 'leave attention out (or write attention = "eager")'
    if "trust_remote_code" in text:
        return "set trust_remote_code = true for this model, if you trust its code"
    if "does not recognize this architecture" in text:
        return "update transformers, or set trust_remote_code = true if the model has its own code"
    if "safetensors" in text and "no file named" in text:
        return "save it again with model.save_pretrained(folder), which writes safetensors"
    return FOLDER if Path(name).expanduser().exists() else HUB


def _check_tokenizer_files(name: str) -> None:
    """Name a file of a folder's tokenizer that is damaged, before transformers reads it."""
    folder = Path(name).expanduser()
    for file in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt"):
        check_text(folder / file)
    for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / file).is_file():
            read_json(folder / file)
    check_text(folder / "chat_template.jinja")


def _without_tokenizer(name: str, error: PotstillError) -> PotstillError:
    """The error of a tokenizer that cannot be read, with the package that it needs."""
    if not _file(name, "tokenizer.json") and (
        file := next((f for f in ("tokenizer.model", "spiece.model") if _file(name, f)), None)
    ):
        return PotstillError(
            f'the tokenizer of "{name}" is {file} alone, which needs the packages sentencepiece '
            "and protobuf",
            "pip install sentencepiece protobuf, or write tokenizer.json once on another machine: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        )
    if "tokenizer" in str(error) and Path(name).expanduser().is_dir():
        names = "tokenizer.json, tokenizer.model, vocab.json, vocab.txt"
        if not any(_file(name, file) for file in names.split(", ")):
            return PotstillError(
                f'"{name}" has no tokenizer ({names})',
                "copy the tokenizer files of the original model into the folder",
            )
    return error


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)


def _file(name: str, file: str) -> str | None:
    """The path of a file of a model; None if the model or the file does not exist."""
    folder = Path(name).expanduser()
    if folder.exists() or _is_path(name):
        return str(folder / file) if (folder / file).is_file() else None
    try:
        path: str | None = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None
    return path


def _adapter(name: str) -> dict[str, Any]:
    """Settings of an adapter; empty if the reference is not one."""
    folder = Path(name).expanduser()
    if folder.exists() or _is_path(name):
        path: str | None = _file(name, "adapter_config.json")
    else:
        try:
            path = find_adapter_config_file(name)
        except (OSError, ValueError):
            return {}
    return read_json(Path(path)) if path else {}
