"""The form of an instruction, whatever its content: too short, repetitive, cut off or damaged."""

import re

from humpback_ray.text.words import words

_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_SUM = re.compile(r"[\d)]\s*[+*/×÷^=√%<>]\s*[\d(?]|\d\s*[-−–]\s*\d+\s*[=?]|√\s*\d|\d!")
_GREETINGS = frozenset({"hello", "hi", "hey", "greetings", "thanks", "bye", "goodbye"})
_MIN_BYTES = 3
"""Minimum length of all letters, in UTF-8: two Latin letters say nothing."""

_ARTICLES = frozenset({"a", "an", "the"})
_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")


def says_too_little(text: str) -> bool:
    """Return whether a text is only punctuation, emoji, a number, a URL or one word, once or repeatedly.

    A calculation ("2+2?") is enough, and so is a greeting.
    """
    if _SUM.search(text) and not _DATE.fullmatch(text.strip()):
        return False
    told = _URL.sub(" ", text).casefold()
    found = {word for word in words(told) if not word.replace("_", "").isdigit()} - _ARTICLES
    if found.isdisjoint(_GREETINGS) and len("".join(found).encode("utf-8", "replace")) < _MIN_BYTES:
        return True
    return len(found) == 1 and found.isdisjoint(_GREETINGS) and told.strip() == text.strip().casefold()


_LETTER_RUN = re.compile(r"([^\W\d_])\1{14}", re.IGNORECASE)
_SIGN_RUN = re.compile(r"([^\w\s=.*#~|+-])\1{19}")
_MIN_LOOP_WORDS = 5
_MAX_DISTINCT = 0.62
"""Share of distinct words in a text; a text with a larger share has no loop."""

_MAX_NUMBERS = 0.3
_MAX_PERIOD = 30
_TIMES = 3
"""A passage that repeats this often in a row is a loop; one of one or two words must repeat twice as often."""

_GRAM, _MIN_GRAMS, _MAX_REPEATED = 3, 10, 0.5


def repeats_itself(text: str) -> bool:
    """Return whether a text loops: one letter, word or passage over and over.

    Texts with many numbers are exempt: tables and matrices repeat them.
    """
    if _LETTER_RUN.search(text) or _SIGN_RUN.search(text):
        return True
    found = words(text.casefold())
    if len(found) < _MIN_LOOP_WORDS or len(set(found)) > _MAX_DISTINCT * len(found):
        return False
    if sum(map(str.isdigit, found)) > _MAX_NUMBERS * len(found):
        return False
    grams = list(zip(*(found[at:] for at in range(_GRAM)), strict=False))
    if len(grams) >= _MIN_GRAMS and len(set(grams)) < (1 - _MAX_REPEATED) * len(grams):
        return True
    half = len(found) // 2
    return (half >= 3 and found[:half] == found[half:]) or _loops(found)


def _loops(found: list[str]) -> bool:
    for period in range(1, min(_MAX_PERIOD, len(found) // 2) + 1):
        same, wanted = 0, period * ((_TIMES if period > 2 else 2 * _TIMES) - 1)
        for word, earlier in zip(found[period:], found, strict=False):
            same = same + 1 if word == earlier else 0
            if same >= wanted:
                return 2 * (same + period) >= len(found)
    return False


_NEEDS_MORE = re.compile(
    r"(?:,|[\w\"')] ?[-–—&]|\b(?:the|an|a|and|or|nor|because|whose|between|including|such as|e\.g\.|i\.e\.|than|into"
    r"|onto|upon|during|within|against|among|amongst|toward|towards|via|per|unless|until|whether|although|while|my|your"
    r"|our|their|besides|despite|regarding|concerning|versus|vs\.?|if|your own|as well as|in order|due|according"
    r"|depending|based|so that|rather|(?:by|in|for|of|to|with|from|on|at) (?:which|whom)|(?:moves?|flows?|passes|goes"
    r"|runs?) (?:through|over|under)))$"
)
_STRANDED = re.compile(r"\b(\w+) (of|to|in|for|from|with|by|at|on|as|about|like)$")
_TAKES = {
    "of": "made up composed consist consists consisting comprised think thinking dream hear heard speak afraid proud "
    "part capable die died dies aware fond full short tired sure out rid care",
    "to": "talk talking speak speaking listen listening belong belongs belonging belonged go goes going gone went "
    "write writing "
    "refer refers referred relate relates related apply applies applied lead leads led respond responds reply married "
    "allergic similar subject attached move moved moving travel come happen happened according connect connected look "
    "pay attend aspire turn react adapt where next close transfer transferred give given "
    "donate contribute convert converted translate sell sold return fly drive run walk migrate emigrate",
    "in": "live lives living lived work works worked working interested believe believes specialize come comes grow "
    "grows get log check tune involved used found located set born play plays participate built written based invest "
    "put fill major sign engage log interested move dress fit invested studied filmed happen happens occur occurs "
    "swim sleep spoken is are was it this join opt plug trade result results",
    "from": "come comes came coming made get gets originate originated originates derive derived differ different "
    "suffer start started learn are is choose benefit obtained taken you hail hails descend buy",
    "by": "meant made written caused done stand go live known affected powered mean created painted produced directed "
    "stop drop composed sung founded discovered",
    "as": "known used serve described act regarded such same seen considered classified",
}  # fmt: skip
"""Words that a preposition may follow at the end of a sentence ("What are weirs made of")."""

_TAKEN = {end: frozenset(known.split()) for end, known in _TAKES.items()}
_GAP = re.compile(
    r"\b(?:what|who|whom|which|where|that|someone|something|somebody|anyone|anything|whoever|whatever)\b", re.I
)
_FILLED = re.compile(r"\bthat (?:is|are|was|were|can be|could be|may be|must be) \w+ \w+$")
_TOO_EARLY = re.compile(r"\W*(?:\w+ )?(?:is|are|was|were|does|do|did|how to|can|should)", re.IGNORECASE)
_PRONOUNS = frozenset(["it", "them", "him", "her", "me", "you", "us", "this", "that", "one", "itself"])
_COMPLETES = re.compile(
    r"\b(?:continue|complete|completes?|finish|fill|autocomplete|rhymes?|next word|blanks?)\b", re.I
)
_CODE = re.compile(r"[{}`;]|=>|\(\)|\w\(\w*[,)]|\w\[\w")
_OPEN_DOUBLE = re.compile(r"(?<![:\s])\s(?:\"|(?P<paired>[“„«]))(?=\w)[^\"”“»\n]*$")
_OPEN_SINGLE = re.compile(r"(?<![:\s])\s['‘](?!\d|em\b|til\b|cause\b|n\b|tis\b|twas\b)(?=\w)[^'’\n]*$")
_OPEN_BRACKET = re.compile(r"(?<![:;=x8\s-])\s?[(\[](?!\W)[^()\[\]\n]*$")
_ELLIPSIS = re.compile(r"(?<=[a-z]) ?(?:\.{3}|…)$")
_MAX_OPEN_WORDS = 6
"""A longer unclosed quotation or bracket is a slip, not the place where a model stopped."""


def breaks_off(text: str) -> bool:
    """Return whether a text ends where no sentence ends: "the role of weirs in", an open quotation or bracket.

    Only lower-case words count: "AND and OR" may end a sentence. A preposition may follow a verb that takes it. A
    request to complete a sentence may end anywhere.
    """
    told = _ELLIPSIS.sub("", text.rstrip())
    if told.endswith(("?", ".", "!")) and told.count("```") % 2 == 0:
        return False
    if _COMPLETES.search(told):
        return False
    stranded = _STRANDED.search(told)
    if stranded and not _takes(told, *stranded.groups()):
        return True
    if _TOO_EARLY.fullmatch(told) or (told.endswith(" without") and not _GAP.search(told)):
        return True
    return bool(_NEEDS_MORE.search(told) or (told.endswith(("(", "[")) and told[-2:-1] not in ":;=-")) or _stays_open(
        told
    )


def _takes(text: str, word: str, preposition: str) -> bool:
    """Return whether a sentence may end in a preposition: `word` takes it, and "what" or the like is its object."""
    if word.lower() in _PRONOUNS:
        return True
    known = _TAKEN.get(preposition)
    return (not known or word.lower() in known) and bool(_GAP.search(text)) and not _FILLED.search(text)


def _stays_open(text: str) -> bool:
    if text.count("```") % 2:
        return True
    if _CODE.search(text):
        return False
    double = _OPEN_DOUBLE.search(text)
    marks = (double if double and (double["paired"] or text.count('"') % 2) else None, _OPEN_SINGLE.search(text))
    return any(mark and len(mark[0].split()) <= _MAX_OPEN_WORDS for mark in (*marks, _OPEN_BRACKET.search(text)))


_TOKEN = re.compile(
    r"</?s>|<\|[^|<>\n]{1,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?(?:eos|bos|pad|unk|sep|cls|mask|eot"
    r"|start_of_turn|end_of_turn|end_of_text|endoftext|think|thinking|answer|instruction|response|user|assistant"
    r"|system|human)>"
    r"|<0x[0-9A-Fa-f]{2}>|\[(?:CLS|SEP|PAD|UNK|MASK|EOS|BOS)\]|[▁Ġ](?=\w)|Ċ|\s#{3,}\s*(?:\w+\s*:)?\s*$",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"^\W{0,4}(?:user|assistant|human|ai|bot|chatbot|chatgpt|gpt|system|ai assistant|llm|model"
    r"|prompter)[*_ ]{0,2}(?<! ):",
    re.IGNORECASE | re.MULTILINE,
)
_HEADED = re.compile(
    r"^#{1,6} ?(?:user|assistant|human|system|instruction|response|input|output)\b\W*$", re.I | re.MULTILINE
)
_SHOUTED = re.compile(r"\b(?:USER|ASSISTANT|HUMAN):|\b(?:Assistant|Human):\s*$")
_TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|u|em|strong|a|ul|ol|li|h[1-6]|td|tr|table|img|font|blockquote|pre|code|center|sup|sub|hr"
    r"|script|style|html|body|section|article|button|input)\b[^<>]*>",
    re.IGNORECASE,
)
_ENTITY = re.compile(
    r"&(?:nbsp|(?<!\w&)amp|quot|lt|gt|apos|hellip|mdash|ndash|rsquo|lsquo|ldquo|rdquo|copy|#\d{2,5}|#x[\da-f]{2,5});"
)
_BB_CODE = re.compile(r"\[(b|i|u|url|img|quote|code|size|color)\b[^\]]*\].*\[/\1\]", re.IGNORECASE | re.DOTALL)
_LINK = re.compile(r"!\[[^\]\n]*\]\([^)\s]+\)|!?\[[^\]\n]*\]\((?:https?://|/|#|www\.)[^)\s]*\)")
_WRAPPED = re.compile(r"(?:#{1,6}\s+\S[^\n]*|(\*\*|__)(?:(?!\1)[^\n])+\1|[*•·▪●>]\s+\S[^\n]*|\|[^\n]*\|)")
_FENCED = re.compile(r"```\w*\s+[^`\n?]*\?\s*```|```\w*\s*```")
_JSON = re.compile(r"\s*[\[{]\s*\{?\s*[\"'](?:instruction|prompt|question|text|output|response|input|query)[\"']\s*:")
_WIKI = re.compile(r"\[\[[^\]\n]+\]\]|\{\{[^}\n]+\}\}|'{3}[^'\n]+'{3}")
_ESCAPED = re.compile(r"\\[nrt](?:\s|$|(?=[A-Z\\]))|\\u[0-9a-f]{4}")
_ABOUT_MARKUP = re.compile(
    r"\b(?:html|xml|css|xhtml|tags?|token|tokens|tokeni[sz]\w*|markup|markdown|entit(?:y|ies)|escap\w+|codes?|coding"
    r"|element|attribute|javascript|python|java|c\+\+|react|jsx|php|sql|regex|regular expression|script|function"
    r"|program|web ?page|website|parse|parser|snippet|template|latex|string|bert|xpath|selector|jquery|angular|wiki"
    r"|bbcode|placeholder|newline|backslash|character|characters|syntax|formatting|svg|json|yaml|bash|shell|path"
    r"|asp\.net|django|vue|swift"
    r"|android|compiler|error|input|output|sentence|anonymi\w+|blank)s?\b",
    re.IGNORECASE,
)
_ABOUT_TALK = re.compile(
    r"\b(?:dialog(?:ue)?s?|conversations?|chats?|transcripts?|role|roles|act as|pretend|continue|script|screenplay"
    r"|bots?"
    r"|debate|interview|reply|respond|exchange|simulate|play|talk|chatbots?|joke|messages?|you are|you will|format)\b",
    re.IGNORECASE,
)


def has_markup(text: str) -> bool:
    """Return whether a text contains marks of its source: tokens of a model, role markers, tags, entities, Markdown.

    A text about such marks, or with code, may contain them.
    """
    if _JSON.match(text):
        return not text.rstrip().endswith("?")
    if "`" in text:
        return bool(_FENCED.fullmatch(text.strip()))
    first = _ROLE.match(text)
    if first or _ROLE.search(text):
        return not _ABOUT_TALK.search(text[first.end() :] if first else text)
    if _HEADED.search(text) or (_SHOUTED.search(text) and not _ABOUT_TALK.search(_SHOUTED.sub(" ", text))):
        return True
    one_line = "\n" not in text.strip()
    if one_line and _WRAPPED.fullmatch(text.strip()):
        return True
    found = [pattern for pattern in (_TOKEN, _BB_CODE, _LINK, _WIKI, _ESCAPED) if pattern.search(text)]
    tagged = [pattern for pattern in (_TAG, _ENTITY) if pattern.search(text)]
    if tagged and (len(text.split()) <= _MAX_TAGGED_WORDS or (one_line and _TAG.match(text))):
        found += tagged
    if not found:
        return False
    plain = text
    for pattern in found:
        plain = pattern.sub(" ", plain)
    return not _ABOUT_MARKUP.search(plain)


_MAX_TAGGED_WORDS = 20
"""Longer texts may contain a tag or an entity: people leave them in text that they paste."""

_ASCII_DAMAGE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]|(?:=[0-9A-F]{2}){2}|(?:%[0-9A-F]{2}\w*){2}|(?:&#\d{2,5};){2}")
_TAIL = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_SECOND_CYRILLIC = "[\u0400-\u040f\u0450-\u045f\u0490\u0491°-»‚„…†‡€‰‹‘’“”•–—™›\xa0¤¦§©«¬\xad®]"
_MOJIBAKE = re.compile(
    rf"[ÂÃ]{_TAIL}|[ÂÃ] (?=\w)|(?<=[a-z])[ÂÃ](?=\W|$)|â{_TAIL}{{2}}|â€|ðŸ|ï¿½|ï»¿|(?:[ãäåæçèé]{_TAIL}{{2}}){{2}}"
    rf"|(?:[ÐÑ]{_TAIL}){{2}}|(?:[ÎÏ]{_TAIL}){{3}}|(?:[ØÙÛ×]{_TAIL}){{3}}|(?:[ÄÅ]{_TAIL}\w*\W*){{3}}"
    rf"|(?:[РС]{_SECOND_CYRILLIC}){{2}}|[\x80-\x9f\ufffd]|{_ASCII_DAMAGE.pattern}"
)
_ABOUT_ENCODING = re.compile(
    r"\b(?:encod|decod|mojibake|utf|unicode|latin-?1|garbled|charset|ascii|percent|url|hex)", re.I
)


def is_mojibake(text: str) -> bool:
    """Return whether a text was decoded with the wrong encoding (UTF-8 as Windows-1252) or lost characters."""
    damage = _ASCII_DAMAGE if text.isascii() else _MOJIBAKE
    return bool(damage.search(_URL.sub(" ", text))) and not _ABOUT_ENCODING.search(text)
