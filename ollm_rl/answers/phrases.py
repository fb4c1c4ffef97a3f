"""Finds answers that a text states in words: "the answer is x", "Answer: x", "x is the answer", in several languages.

The statement ends with its sentence, or before a reason or an explanation ("5 (3 + 2)", "5, the number of ways").
"""

import re

from ollm_rl.answers.expressions import find_expressions
from ollm_rl.answers.last_expression import is_denied, last_expression, value_at
from ollm_rl.answers.number_words import PART
from ollm_rl.answers.prose import FORMULA, Prose, read_prose
from ollm_rl.answers.quantities import read_quantity

MOST_WORDS = 6  # of an answer in words

# A text without any of these states no answer. This test is faster than the patterns.
_QUICK = (
    "answer", "option", "choice", "choose", "pick", "select", "go with", "correct", "final", "respuesta", "réponse",
    "antwort", "lösung", "答", "正解", "选", "ответ", "정답",
)  # fmt: skip
_NAME = (
    r"(?:answers?(?: choice| option)?|(?:correct|right|best|final) (?:option|choice|result|value|one|statement)s?"
    r"|my choice|respuestas?|(?:opción|alternativa) correcta|réponses?|bonne option|(?:end)?antwort(?:en)?|lösung)"
    r"(?: (?:final|correcta|finale|correcte))?(?: \([^()\n]{1,40}\))?(?: (?:to|for|of|in|that|we) [^.:;\n$\\]{1,60}?)?"
)
_IS = r"(?:is|are|was|equals?|becomes?|es|son|será|sería|est|sont|sera|serait|ist|sind|lautet|lauten)"
_MUST_BE = (
    r"(?:(?:must|should|would|will|can only|has to|have to) be|(?:turns?|comes?) out (?:to be|to|as)"
    r"|debe(?:n|ría)? ser|tiene que ser|doit être|muss)"
)
_ADVERB = (
    r"(?:therefore|thus|then|hence|simply|just|exactly|precisely|also|still|indeed|actually|clearly|only|ultimately"
    r"|equal to|given by|going to be|the (?:number|value|integer|fraction|interval|set|point)"
    r"|exactamente|simplemente|entonces|exactement|simplement|donc|genau|einfach|also|daher)"
)
_STATED = re.compile(
    rf"\b{_NAME}(?:,? (?:therefore|then|thus|hence),?)? (?:{_IS}|(?P<modal>{_MUST_BE}))\b(?:,? {_ADVERB}\b,?)*"
    rf"|(?:\b|(?<=_)){_NAME}[ *_\"]*[:：=]"
    r"|^[#*_> \t]*(?:the )?(?:(?:final|correct) )?(?:answer|respuesta|réponse|antwort)(?: final)?[*_ \t]*$"
    r"|(?:答案|正确选项)(?!并?[不非大小])(?:应该|应|必须)?(?:是|为|选)?|[故所]?以?应?选择?[:：]? ?(?=[A-J(（])"
    r"|(?:答|答え|正解|답|정답|ответ)(?:は| ?[:：])",
    re.IGNORECASE | re.MULTILINE,
)
_AFTER = re.compile(r" (?:is|must be|as) (?:the|our|my) (?:final |correct )?answer\b", re.IGNORECASE)
# Words after "the answer is" that state no answer.
_NOT_STATED = re.compile(
    r"(?:not|nicht|pas|as follows|found|obtained|given|unique|obvious|reasonable|based|greater|less|between"
    r"|at (?:least|most)|necessary|acceptable|closest|in(?= [a-z])"
    r"|(?-i:an?(?= (?!dozen|hundred|thousand|million)[a-z]))|(?:in)?correct(?=[.!,;]|$)|wrong|right(?=[.!,;]|$))\b"
    r"|[^。\n]*?(?:では|じゃ)(?:な[いく]|ありません)",
    re.IGNORECASE,
)
_BEFORE_ANSWER = re.compile(r"(?:[\s:：*_`ˋ=\"]|(?<=[`ˋ])(?:text|plaintext)\n|-{3,}\s|(?<=\n)-\s)*")
_EXPLANATION = re.compile(
    rf"(?P<reason>,?[ ](?:because|since|which|where|porque|weil|puisque|parce que)\b|,[ ](?:so|as|but)\b|，?因为)"
    rf"|[,;:，；]\s?(?=[ie]\.[eg]\.|(?!(?:and|or|y|o|et|ou|und|oder)\b)[^\W\d_]{{2,}})|[；。，]"
    rf"|[ ](?:to the nearest|in (?:interval|simplest|lowest|its)|as (?:desired|required|before|expected))\b"
    rf"|,?[ ](?:and not|not|rather than|instead of|[аи] не|(?:und )?nicht|et (?:non|pas)|y no)\b"
    rf"|[ ](?:→|⇒|=>)[ ](?=[A-Za-z]{{2}})|[ ]:\)"
    rf"|\"\s*[,}}]|,\s*\"|[ ](?:[–—]|--)[ ](?![\d{FORMULA}])|[ ]-[ ](?=[A-Za-z]{{2}})"
    rf"|(?<!hundred)(?<!thousand)(?<!million)[ ](?:and|y|et|und)[ ](?!{PART}|demie?\b|medi[ao]\b|"
    rf"[*_(]*[A-J][*_)]*(?=[ ]*(?:[.,;]|$|and\b))|[^.;]*[\d\\{FORMULA}])"
    rf"|[ ][(（](?!\s?\\?(?:p?mod|base|in base|or)\b)(?=[^()]*[^\W\d_]{{2}}|[\d\s+*/=.,×÷-]*\))"
    rf"|(?<=[\d{FORMULA}])[ ](?=[A-Z][a-z]+[ ])"
)
# A clause is read like a sentence of its own: "that Tom has 5 apples", "the numerator, $190$".
_CLAUSE = re.compile(
    rf"(?:(?:the|that|dass|que) (?=[^\n]*[\d{FORMULA}])|(?:[^\W\d_][\w']* ){{1,6}}(?:is|are|was|were|has|have|had|gets?"
    r"|got|needs?|takes?|costs?|makes?|earns?|spends?|pays?|tiene|hay|hat|a|est)\b[^\n]*\d|[\u3400-\u9fff]+[^\n]*\d)"
)
_EMPHASIS = " \t*_`ˋ"
_BOLD = re.compile(r"(?<!\S)\*\*(?=\S)|(?<=\S)\*\*(?=[\s.,:;!?%]|$)")  # not 2**3
# After a statement, so that it is none.
_TAKEN_BACK = re.compile(
    r"\b(?:wait(?=[,.!:–—-])|oops|sorry|correction|on second thought|mistaken?"
    rf"|(?:no,|actually,?) (?:it(?:'s| is) )?(?=[\d{FORMULA}])"
    r"|(?:that|this|it|which)(?:'s| is| was) (?:wrong|incorrect|not (?:right|correct)))\b",
    re.IGNORECASE,
)
_FULL_STOP = re.compile(r"(?<=[\w)\]}$*_`ˋ])\s?(?:!+|[?.。]+)$")
_FINISHED = re.compile(
    r"[.\s]*(?:\$\$?|\\[(\[])?\s*(?:\\(?:blacksquare|square|Box|qed)|[∎■□])\s*(?:\$\$?|\\[)\]])?\s*$"
)
_SYSTEM_NAME = re.compile(r"(?<![\w\\+*/^-])([A-Za-z](?:_\w)?)\s*=")
_CHOSEN = re.compile(
    r"\b(?i:option|choice|answer) (\(?[A-J]\)?)(?= is (?:the )?(?:correct|right)\b)"
    r"|\b(?i:so|thus|hence|therefore),? (\(?[A-J]\)?)(?= is (?:the )?(?:correct|right)\b)"
    r"|(?<!\w)(\(?[A-J]\)?)(?= is the (?:correct|right|best) (?:choice|option)\b)"
    r"|\b(?:I|[Ww]e)(?: would|'d| will|'ll)? (?:choose|pick|select|go with) (?:option |choice |answer )?"
    r"(\(?[A-J]\)?)(?![\w'])"
)
_LETTER = re.compile(r"\(?\b[A-J]\)?$")


def stated_answer(text: str) -> str | None:
    """The answer in the last statement of one, as written in the text; None without a statement."""
    lowered = text.casefold()
    if not any(word in lowered for word in _QUICK):
        return None
    prose = read_prose(text)
    for match in reversed(list(_STATED.finditer(prose.masked))):
        answer = statement(prose, match.start(), match.end())
        if answer and _TAKEN_BACK.search(prose.masked, match.end()):
            return None
        if not answer or is_denied(prose, match.end() + 1) or _NOT_STATED.match(answer):
            continue
        if _is_value(answer) or not (match["modal"] or len(answer.split()) > MOST_WORDS):
            return answer
    if chosen := _CHOSEN.findall(prose.masked):
        return max(chosen[-1])
    for match in reversed(list(_AFTER.finditer(prose.masked))):
        spans = find_expressions(prose, max(0, match.start() - 200), match.start())
        if spans and spans[-1].end == match.start():
            return value_at(prose, spans[-1]) or None
        if letter := _LETTER.search(prose.before(match.start())):
            return letter.group()
    return None


def statement(prose: Prose, start: int, position: int) -> str | None:
    """The answer of a statement, without explanations; None if there is none.

    Args:
        prose: The text.
        start: Where the statement begins, such as at "the answer is 5".
        position: Where its answer begins.
    """
    skipped = _BEFORE_ANSWER.match(prose.masked, position)
    assert skipped is not None  # all of it is optional
    position = skipped.end()
    end = prose.sentence_end(position)
    said = prose.text[position:end]
    if _CLAUSE.match(prose.masked, position, end) or (FORMULA in prose.masked[position:end] and _is_worked_out(said)):
        return last_expression(prose.text[start:end])
    for cut in _EXPLANATION.finditer(prose.masked, position, end):
        if cut["reason"] or _is_value(prose.text[position : cut.start()]):
            said = prose.text[position : cut.start()]
            break
    return _without_ending(said) or None


def _without_ending(said: str) -> str:
    """An answer without emphasis, end-of-proof sign, full stop, and a bracket that opens before it."""
    said = _FULL_STOP.sub("", _FINISHED.sub("", _BOLD.sub("", said)).strip(_EMPHASIS)).strip(_EMPHASIS)
    opened, closed = (sum(map(said.count, signs)) for signs in ("([{", ")]}"))
    if said[-1:] in (")", "]", "}") and said[-2:-1] != "\\" and closed > opened:
        said = said[:-1].rstrip(_EMPHASIS)
    return said


def _is_worked_out(text: str) -> bool:
    """Whether a statement has an equation but is not a system with several names ("x = 2 and y = 3")."""
    return "=" in text and len(set(_SYSTEM_NAME.findall(text))) < 2


def _is_value(text: str) -> bool:
    """Whether a text begins with a number, a formula or the letter of a choice."""
    text = text.strip()
    return bool(re.match(r"\W*\d|[^A-Za-z]*[$\\]|\(?[A-J]\)?(?![\w'])", text) or read_quantity(text))
