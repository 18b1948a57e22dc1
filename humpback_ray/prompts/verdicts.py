"""Read a judge's verdict from the last line of its reply: a small grammar of the forms that models write.

First the line is reduced to plain text (Unicode forms, invisible characters, Markdown, LaTeX, HTML, spelled-out end
markers). Then the whole line must be a verdict: a label or a grading sentence, and one number. The label may be missing
if nothing else is on the line. An ambiguous line, such as one with two numbers or a range, is not a verdict.
"""

import ast
import json
import re
import unicodedata

MOST_CHARS = 2000
"""A longer line is not a verdict."""
_TAIL_CHARS = 300
"""A verdict after a sentence on the same line begins at most this far from the end."""

_THINKING = r"(?:think|thinking|thoughts?|reasoning|reflection|scratchpad)"
_THINKS = re.compile(rf"<{_THINKING}>|\[think\]|◁think▷", re.IGNORECASE)
_THOUGHT = re.compile(rf"</{_THINKING}>|\[/think\]|◁/think▷", re.IGNORECASE)
_END = re.compile(
    r"(?:</s>|<(?:eos|eot|eod|end|end_of_turn|end▁of▁sentence|stop)>|\[(?:eos|eot|end|/s)\]"
    r"|<\|(?:[a-z_▁]{0,24}(?:end|eo[tsmd])[a-z_▁]{0,24}|return)\|>)+\s*$",
    re.IGNORECASE,
)
_RULE = re.compile(r"[-*_=~`—–─═━$\s]+|\\[\])]")
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that reverse the direction of text: a line that contains one does not read as it looks."""

_TAG = re.compile(r"</?(?:b|strong|em|i|u|p|span|div|code|pre|br|h[1-6]|mark|center|font|small|big|li)(?:\s[^<>]*)?/?>")
_LATEX = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm)?|math(?:bf|it|rm)|underline|emph)\s*\{([^{}]*)\}")
_RULED = re.compile(r"([=~+#-]{2,})\s*(.*?)\s*\1|(#+)\s(.*?)\s#+")
_MATH = re.compile(r"\$+([^$]+)\$+|\\\(([^$]+)\\\)|\\\[([^$]+)\\\]")
_MARKER = re.compile(r"(?:[-+•‣◦▪●·→➤»–—]+\s+|=+>\s*|->\s*|>\s*|#+\s+)+")
_BRACKETS = dict(zip("([{<“‘«‹「『【„\"'", ")]}>”’»›」』】“\"'", strict=True))

_WORDS = {word: value for value, word in enumerate(("zero", "one", "two", "three", "four", "five"))}
_NUMERALS = {sign: value for value, sign in enumerate("零一二三四五")} | {"〇": 0}
_OF_FIVE = (
    r"(?:/|,?\s*(?:out\s+of|of)(?:\s+(?:a\s+)?(?:possible|(?:total|max|maximum)(?:\s+of)?))?)"
    r"\s*(?:5(?:\.0{1,2})?|five|五)"
)
_SCALE = (
    rf"(?:{_OF_FIVE}|(?:on\s+)?(?:(?:a|the)\s+)?(?:scale\s*)?(?:of\s+|from\s+|:\s*)?[01]\s*(?:-|–|~|to)\s*5"
    r"|max(?:imum|\.)?:?\s*5)"
)
_UNIT = r"(?:points?|pts?\.?|stars?|分|点|[★⭐])"
_VALUE = re.compile(
    r"(?:[~≈]\s*|(?:about|around|approximately|approx\.?|roughly)\s+)?(?:an?\s+)?"
    rf"(?P<number>[0-9](?:\.[0-9]{{1,2}})?|{'|'.join(_WORDS)}|[{''.join(_NUMERALS)}])"
    r"(?P<half>(?:\s+|-)and(?:\s+|-)a(?:\s+|-)half)?"
    rf"(?:\s*{_UNIT})?(?:\s*{_OF_FIVE}(?:\s+possible)?|\s+on\s+{_SCALE}|\s*[(\[]\s*{_SCALE}\s*[)\]])?(?:\s*{_UNIT})?"
)

_WHAT = r"(?:it|(?:this|the)\s+(?:answer|response|reply|pair|example)|this)"
_NOUN = (
    r"(?:(?:the|my|our|this|a)\s+)?(?:(?:final|overall|total|assigned|numeric|numerical|resulting)\s+){0,2}"
    r"(?:score|grade|rating|verdict|evaluation|assessment|judge?ment|points|total|sum(?:\s+of\s+points)?|overall"
    r"|rated|graded|scored|final\s+(?:mark|answer)|得分|评分|分数|总分|スコア|点数|評価|評点|得点)"
    rf"(?:\s+(?:for|of)\s+(?:{_WHAT}|answer|response))?(?:\s*[(\[]\s*(?:{_SCALE}|final|overall|total)\s*[)\]])?"
)
_FIELD = re.compile(_NOUN)
_LEAD = (
    r"(?:(?:answer|response|reply|review|result|output|judge|evaluator|assistant)\s*:\s+)?(?:(?:and|so|thus|therefore|hence|overall|finally|conclusion|in\s+(?:conclusion|summary|total)|to\s+conclude"
    r"|to\s+sum\s+up|all\s+in\s+all|based\s+on\s+(?:this|that|the\s+above))\s*[,:]?\s+)?"
)
_IS = r"(?:\s*(?::|=|→|⇒|->|=>|—|[-–](?=\s)|\|)|\s+(?:is|equals|of|would\s+be|will\s+be)(?:\s*:|(?=\s)))"
_GRADES = (
    r"(?:(?:i|we)(?:\s+(?:would|will|shall|can|must)|['’](?:d|ll))?\s+(?:therefore\s+|thus\s+)?"
    rf"(?:(?:give|rate|grade|score|award|assign|mark)(?:\s+{_WHAT})?(?:\s+(?:as|with|at))?"
    r"|say(?:\s+it(?:\s+is|['’]s))?|go\s+with|settle\s+on)"
    r"|(?:it|this)\s+is(?=\s+an?\s)"
    rf"|{_WHAT}\s+(?:gets|earns|deserves|receives|merits|scores|(?:is|should\s+be)\s+(?:graded|rated|scored)(?:\s+with)?))"
    r"(?:\s+(?:an?|the)?\s*(?:final\s+|overall\s+)?(?:score|grade|rating)\s+of)?"
)
_OPEN, _CLOSE = "[\"'“(\\[【]{0,2}", "[\"'”)\\]】]{0,2}"
_PLAIN = r"(?:(?<=score)|(?<=grade)|(?<=rating))"
_LABEL = re.compile(
    rf"{_LEAD}(?:(?!the\s+(?:total|sum)\s+(?:is|equals|would))"
    rf"{_OPEN}{_NOUN}(?:{_CLOSE}(?:{_IS}|(?=\s*[(\[<{{「【]))|{_PLAIN}{_CLOSE}\s(?=\s*(?:[0-9]|{'|'.join(_WORDS)})))"
    rf"|{_GRADES}\s)\s*"
)

_SENTENCE = re.compile(r"[.!?]\s+|[。！？]\s*")
_QUOTES = re.compile("[\"“”„«»‹›「」『』`<>()\\[\\]{}|]|(?:^|\\s)['‘]|['’](?:\\s|$)")
_LABELS = re.compile(r"\b(?:score|grad|rating|rate|mark|verdict|points|total|assess|evaluat)|[分点評]", re.IGNORECASE)
_NUMBER_WORDS = re.compile(rf"\b(?:{'|'.join(_WORDS)}|six|seven|eight|nine|ten|half)\b")
_REMARK = re.compile(
    r"\s+[-–—]+\s+|\s*—\s*|\s*\((?=[^()]*\)$)|\s*\[(?=[^\[\]]*\]$)|[,;.]\s+|\s+(?=(?:because|since|due\s+to)\s)"
)
_TAKES_BACK = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|probably|higher|lower|above|below|plus|minus|most|least|max\w*|min\w*|up\s+to|not"
    r"|no|wait|if|unless|tentative\w*|provisional\w*|draft|initial\w*|first|before|instead|range|between|borderline"
    r"|close|almost|nearly|point|points|percent|scale|out\s+of|score|grade|rating|otherwise|rather|correction"
    r"|actually|sorry)\b|n['’]t\b|[/%?=~<>|]"
)

_ABOUT_THE_VERDICT = re.compile(
    r"\b(?:but|however|though|although|yet|reflection|reconsider\w*|ignor\w*|claim\w*|quot\w*|says?|said|text|page|line"
    r"|instruct\w*|inject\w*|attack\w*|manipulat\w*|demand\w*|ask\w*|request\w*|that|this|which|it|worse|better|less"
    r"|more|should|deserv\w*|would|above)\b"
)
_REMARK_CHARS = 300


def read_verdict(reply: str, lowest: float, highest: float) -> float | None:
    """Return the grade, `lowest` to `highest`, in a reply's last line; None unless it states one clearly.

    Later lines with only fences, rules or end markers are skipped, and so is one remark on the answer. A reply with
    unfinished reasoning has no verdict.
    """
    reply = _without_remark(reply)
    start, line = last_line(reply)
    grade = _line_verdict(line)
    if grade is None or not lowest <= grade <= highest or _is_of_something_else(line, reply[:start]):
        return None
    return grade


def _without_remark(reply: str) -> str:
    """Cut off a last line that is a remark on the answer, after the only line with a label and a grade.

    The remark must not be about a number or the grade, and the line before the grade must be a complete sentence: a
    judge that quotes a page's demands continues differently.
    """
    start, line = last_line(reply)
    remark = _visible(line).casefold()
    told = (_TAKES_BACK, _NUMBER_WORDS, _LABELS, _QUOTES, _ABOUT_THE_VERDICT)
    if not remark or len(remark) > _REMARK_CHARS or re.search(r"\d", remark) or any(one.search(remark) for one in told):
        return reply
    place, verdict = last_line(reply[:start])
    others = [other for other in reply[:place].splitlines() if other.strip()]
    labelled = _LABEL.match(_unwrapped(_without_markup(_visible(verdict))))
    ends = not others or _visible(others[-1]).rstrip("*_`) ").endswith((".", "!", "?", "。", "！", "？"))
    if (
        labelled
        and ends
        and _line_verdict(verdict) is not None
        and not any(_line_verdict(o) is not None for o in others)
    ):
        return reply[: place + len(verdict)]
    return reply


def _is_of_something_else(line: str, before: str) -> bool:
    """Tell whether the line is a bare number under a heading, or after a colon, that is not about a grade."""
    heading = _visible(last_line(before)[1])
    opens = heading.startswith("#") or heading.rstrip("*_ ").endswith(":")
    return opens and not _LABELS.search(heading) and _value(_without_markup(_visible(line))) is not None


def grade_place(reply: str, grades: range) -> int | None:
    """Return the position of the verdict's digit in a reply; None unless the verdict is one of the grades, as a digit.

    Any other digit in this position would give that other grade.
    """
    grade = read_verdict(reply, grades[0], grades[-1])
    start, line = last_line(_without_remark(reply))
    if grade is None or grade not in grades:
        return None
    others = [other for other in grades if other != grade]
    for place, sign in enumerate(line):
        if sign == str(int(grade)) and all(
            _line_verdict(f"{line[:place]}{other}{line[place + 1 :]}") == other for other in others
        ):
            return start + place
    return None


def last_line(reply: str) -> tuple[int, str]:
    """Return the start of the last line with content, and the line; an empty line if the reasoning did not end."""
    thoughts = [match.end() for match in _THOUGHT.finditer(reply)]
    first = thoughts[-1] if thoughts else 0
    if _THINKS.search(reply, first):
        return len(reply), ""
    lines, start = [], first
    for line in reply[first:].splitlines(keepends=True):
        lines.append((start, line))
        start += len(line)
    for begin, line in reversed(lines):
        plain = _END.sub("", _visible(line)).strip() if line.strip() else ""
        if plain and not _RULE.fullmatch(plain):
            return begin, line
    return len(reply), ""


def _visible(line: str) -> str:
    """Return a line in its compatibility form, digits as ASCII, without invisible characters and runs of spaces."""
    line = unicodedata.normalize("NFKC", re.sub(r"(?<=\d)\s?½", ".5", line))
    signs = (
        str(unicodedata.digit(sign)) if sign.isdecimal() else sign
        for sign in line
        if sign in _TURNS or not _is_invisible(sign)
    )
    return " ".join("".join(signs).split())


def _is_invisible(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cf", "Me") or "\ufe00" <= sign <= "\ufe0f" or sign == "\u034f"


def _line_verdict(line: str) -> float | None:
    """Return the grade that a line states, on any scale; None if the line is not a verdict."""
    if len(line) > MOST_CHARS:
        return None
    line = _END.sub("", _visible(line)).strip()
    found = _object_verdict(line.strip("`* "))
    if found is not None:
        return found
    plain = _without_markup(line)
    whole = _verdict(plain)
    return whole if whole is not None else _after_sentence(plain)


def _without_markup(line: str) -> str:
    line = _TAG.sub(" ", line.casefold())
    line = line.replace("*", "").replace("`", "").replace("_", " ")
    for _ in range(3):
        line = _LATEX.sub(r" \1 ", line)
    line = _MATH.sub(lambda match: f" {match[1] or match[2] or match[3]} ", line)
    line = " ".join(line.split())
    ruled = _RULED.fullmatch(line)
    return (ruled[2] or ruled[4] or "") if ruled else line


def _verdict(text: str, labelled: bool = False) -> float | None:
    """Read a text that must be a verdict as a whole; without a label it must be just a number."""
    marked = _MARKER.match(text)
    text = _unwrapped(text[marked.end() :] if marked else text)
    label = _LABEL.match(text)
    if not label and marked and marked[0].strip("# •*"):
        return None  # "- 4" may be an item or a negative number, "> 4" a quote or more than 4
    for _ in range(2):
        if label := _LABEL.match(text):
            text, labelled = _unwrapped(text[label.end() :]), True
    if (found := _value(text)) is not None or not labelled:
        return found
    return _remarked(text)


def _unwrapped(text: str) -> str:
    """Remove closing punctuation, one symbol at either end, and brackets and quotes around the whole text."""
    while True:
        found = text.strip().rstrip(".,;!。、\\").strip()
        if len(found) > 2 and unicodedata.category(found[0]) == "So" and unicodedata.category(found[1]) != "So":
            found = found[1:].strip()
        if len(found) > 2 and unicodedata.category(found[-1]) == "So" and unicodedata.category(found[-2]) != "So":
            found = found[:-1].strip()
        if found[:1] == "|" == found[-1:] or _is_wrapped(found):
            found = found[1:-1].strip()
        if found == text:
            return found
        text = found


def _is_wrapped(text: str) -> bool:
    """Tell whether brackets or quotes enclose a text as a whole, not two parts of it."""
    closing = _BRACKETS.get(text[:1], "")
    return len(text) > 1 and text[-1] == closing and (closing != text[0] or closing not in text[1:-1])


def _value(text: str) -> float | None:
    """Read a number with the usual words around it: "about", points, `/5`, brackets."""
    match = _VALUE.fullmatch(_unwrapped(text))
    if not match or (match["half"] and "." in match["number"]):
        return None
    number = match["number"]
    value = _WORDS.get(number, _NUMERALS.get(number))
    return (float(number) if value is None else value) + (0.5 if match["half"] else 0.0)


def _remarked(text: str) -> float | None:
    """Read a number followed by a remark that neither names another number nor takes the first one back."""
    for separator in _REMARK.finditer(text):
        remark = text[separator.end() :]
        if separator[0].strip() in ("(", "["):
            remark = remark[:-1]
        found = _value(text[: separator.start()])
        if found is not None:
            says_more = re.search(r"[^\W\d_]", remark) and not re.search(r"\d", remark)
            takes_back = _TAKES_BACK.search(remark) or _NUMBER_WORDS.search(remark)
            again = _value(remark) == found
            return found if again or (says_more and not takes_back) else None
    return None


def _after_sentence(text: str) -> float | None:
    """Read a labelled verdict that follows a sentence on the same line, if it is not quoted and the only number."""
    for end in _SENTENCE.finditer(text, max(0, len(text) - _TAIL_CHARS)):
        before, after = text[: end.end()], text[end.end() :]
        if not _LABEL.match(_unwrapped(after)) or (found := _verdict(after)) is None:
            continue
        told = _NUMBER_WORDS.search(before) and _LABELS.search(before)
        return None if told or re.search(r"\d", before) or _QUOTES.search(before + " ") else found
    return None


def _object_verdict(line: str) -> float | None:
    """Read JSON, a Python literal or XML elements on one line that hold one score."""
    line = line.rstrip(".,; ")
    if line.startswith("<") and line.endswith(">"):
        fields = _elements(line)
    elif line.startswith(("{", "[{")) and line.endswith(("}", "]")):
        fields = _fields(line)
    else:
        return None
    named = [(_spaced(name), value) for name, value in fields]
    most = [_number(value) for name, value in named if re.search(r"\b(?:max|maximum|out of|scale|possible)\b", name)]
    found = {_number(value) for name, value in named if _FIELD.fullmatch(name)}
    return found.pop() if len(found) == 1 and all(value == 5 for value in most) else None


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", name).casefold().strip()


def _number(value: object) -> float | None:
    return None if isinstance(value, bool) else _value(str(value).casefold())


def _fields(line: str) -> list[tuple[str, object]]:
    """Return the names and plain values in an object, at any depth; repeated names occur repeatedly."""
    found: list[tuple[str, object]] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        found.extend((name, value) for name, value in pairs)

    def walk(value: object) -> None:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            walk(inner)
        if isinstance(value, dict):
            note([(str(name), inner) for name, inner in value.items()])

    try:
        json.loads(line, object_pairs_hook=note)
    except (ValueError, RecursionError):
        try:
            walk(ast.literal_eval(line))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return []
    return found


def _elements(line: str) -> list[tuple[str, str]]:
    """Return the names and texts of the innermost XML elements; the text is "" if other text surrounds the element."""
    found = []
    for match in re.finditer(r"<([A-Za-z][\w-]*)(?:\s[^<>]*)?>([^<>]*)</\1\s*>", line):
        before, after = line[: match.start()].rstrip(), line[match.end() :].lstrip()
        whole = before[-1:] in ("", ">") and after[:1] in ("", "<")
        found.append((match[1], match[2].strip() if whole else ""))
    for tag, attributes in re.findall(r"<([A-Za-z][\w-]*)((?:\s+[\w-]+=\"[^\"<>]*\")+)\s*/>", line):
        pairs = re.findall(r"([\w-]+)=\"([^\"]*)\"", attributes)
        found += [(tag if name == "value" else name, value) for name, value in pairs]
    return found
