"""Splits a text into sentences and, where the script changes, into pieces of words that indicate a language.

Mathematics, code, addresses and short quotations are removed first; they are written alike in all languages.
"""

import functools
import re
from dataclasses import dataclass
from itertools import groupby

from ollm_rl.answers.prose import FORMULA, read_prose
from ollm_rl.metrics.scripts import WORD, count_words, script_of_word

NAME_WORDS = 2  # so many words of another script are a name or a term; twice as many in quotes

# Code blocks, open ones to the end of the text if that is ASCII, so that they hide no other script; tags; commands.
_MARKUP = re.compile(
    r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]|(?P<fence>[`ˋ]{3}|(?<!~)~{3}(?!~))(?:(?:(?!(?P=fence)).)*(?P=fence)|[\0-\x7f]*\Z)"
    r'|</?[a-z]\w*(?: [\w-]+="[^"\n]*")*/?>|<[|｜][\w▁]+[|｜]>|\\(?:begin|end)\{[^}]*\}|\b[A-Z]:\\[\w\\.-]+|\\[a-zA-Z]+|https?://\S+',
    re.DOTALL,
)
# Code within a line, lines of code, addresses, paths, file names and tags of posts.
_NO_PROSE = re.compile(
    r"[`ˋ][^`ˋ\n]{1,200}[`ˋ]|^[ \t]*(?:import \w+|from \w+ import .+|(?:def|class) \w+\(.*|(?:for|while|if|elif) .*:"
    r"|else:|return .+|print\(.*\)|[a-z_]\w* [-+*/]?= [\w.()\[\]]+(?: ?[-+*/%] ?[\w.()\[\]]+)*)[ \t]*$"
    r"|www\.\S+|\S{1,64}@\S+|[@#]\w+|(?:[\w.~:-]{0,64}+[/\\]){2,}[\w.-]*|\b\w+\.[a-z]{2,4}\b",
    re.MULTILINE,
)
QUOTED = re.compile(r"(?<!\w)(['\"])((?:(?!\1)[^\n]){1,80})\1(?!\w)|[“„«»‘「『《]([^”“»«’」』》\n]{1,80})[”“»«’」』》]")
_SENTENCE_END = re.compile(r"[.!?:;\n।。！？：；]+")
_SYMBOL = re.compile(
    r"[a-zɐ-ʯᴀ-ᵿァ-ヿｦ-ﾟ]|[Ͱ-Ͽ]{1,3}|[b-df-hj-np-tv-z]{2,3}|(?-i:[IVXLCDM]+)|[ivx]+|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|cis|log|sqrt"
    r"|(?-i:max|min|lim|mod|det|exp|deg)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Piece:
    """Words of one script in a sentence, and whether the sentence has no others."""

    script: str
    words: list[str]
    is_whole: bool

    @property
    def text(self) -> str:
        """The words, joined by spaces."""
        return " ".join(self.words)

    @property
    def num_words(self) -> int:
        """Number of words. In scripts without spaces a run of letters counts by its length."""
        return count_words(self.words, self.script)


def split_pieces(text: str, *, longest_quotation: int = 2 * NAME_WORDS) -> list[Piece]:
    """Pieces of a text, without formulas, code, addresses and quotations of at most so many words."""
    text = _NO_PROSE.sub(" ", _MARKUP.sub(" ", read_prose(text).masked.replace(FORMULA, " ")))

    def remove_short(match: re.Match[str]) -> str:
        return " " if len(WORD.findall(match[2] or match[3])) <= longest_quotation else match.group()

    pieces = []
    for sentence in _SENTENCE_END.split(QUOTED.sub(remove_short, text)):
        groups = [(script, list(words)) for script, words in groupby(_words(sentence), key=_script)]
        pieces += [Piece(script, words, len(groups) == 1) for script, words in groups]
    return pieces


def all_words(text: str) -> str:
    """All words of a text that indicate a language, joined by spaces."""
    return " ".join(piece.text for piece in split_pieces(text, longest_quotation=0))


def latin_words(text: str) -> list[str]:
    """Words of a text in Latin script, without code blocks, LaTeX commands, variables, units and labels."""
    return [word for word in _words(_MARKUP.sub(" ", text)) if _script(word) == "LATIN"]


def _words(sentence: str) -> list[str]:
    """Words that indicate a language."""
    return [word for word in WORD.findall(sentence) if _script(word)]


@functools.lru_cache(maxsize=4096)
def _script(word: str) -> str:
    """The script of a word that indicates a language; empty for variables, units and labels."""
    is_label = word.isupper() and len(word) <= 4
    return "" if is_label or _SYMBOL.fullmatch(word) else script_of_word(word)
