"""English texts that are not a request to answer: site navigation, a heading, personal data, a request for harm."""

import re

from humpback_ray.text.words import words


def plainly(text: str) -> str:
    """Return a text in lower case, with straight apostrophes and single spaces."""
    return " ".join(text.casefold().replace("’", "'").split())


_MENU = (
    r"(?:home|about(?: us)?|contact(?: us)?|blog|news|log ?in|log ?out|sign ?(?:in|up|out)|register|search|menu|faqs?"
    r"|help|shop|store|cart|products?|services|support|privacy(?: policy)?|terms(?: of (?:use|service))?|site ?map"
    r"|careers|press|next|previous|prev|back|more|share|tweet|print|e-?mail|subscribe|rss|archives?|categories|tags"
    r"|account|my account|gallery|events|forum|home ?page|team|pricing|download|events?|facebook|twitter|instagram"
    r"|pinterest|linkedin|top|create (?:an )?account|privacy choices)"
)
_TRAIL = re.compile(
    rf"\W*{_MENU}(?:\s*[|»›·•/>→,\n\t–—-]\s*[\w &']{{1,30}}){{2,}}\W*|\W*{_MENU}(?:\s*[|/»›·•]\s*{_MENU})+\W*"
)
_MENUS = re.compile(rf"\W*{_MENU}(?:(?:\s|\W)+{_MENU}){{2,}}\W*")
_FURNITURE = re.compile(
    r"\W{0,3}(?:skip to (?:main |the )?(?:content|navigation)|jump to\b|accept (?:all )?(?:the )?cookies\b|(?:we"
    r"|our (?:web)?site) uses? (?:\w+ )?cookies|this (?:web ?)?site uses (?:\w+ )?cookies|by (?:continuing|clicking"
    r"|using|browsing|closing)\b[^.]{0,60}\b(?:you (?:agree|accept|consent)|cookies)|click here\b|sign up (?:for"
    r"|to) (?:our|the|get|receive)\b|subscribe (?:to|now|for)\b[^.]{0,40}\b(?:newsletter|updates|channel|now|today)?"
    r"|read (?:more|next|the full)\b|continue reading\b|copyright\b[^a-z]{0,8}\d{4}|(?:©|\(c\)) ?(?:\d{4}|copyright)"
    r"|all rights reserved|(?:log|sign) ?in (?:to|or|with)\b|login (?:/|or|to)\b|create an account\b|share (?:this|on"
    r"|via)\b|leave a (?:comment|reply)\b|post(?:ed)? (?:a comment|by|on|in) |page \d+ of \d+|back to (?:top|home)\b"
    r"|related (?:posts|articles|stories|products|topics)\b|table of contents|(?:please )?enable (?:javascript"
    r"|cookies)|javascript (?:is|must)|follow us\b|like us on\b|add to (?:cart|basket|wishlist)|your cart\b|buy now\b"
    r"|shop now\b|free shipping|view (?:all|more|cart)\b|see (?:all|more)\b|show (?:more|less)\b|load more|loading\."
    r"|you are here|previous (?:post|article|page)|next (?:post|article|page)|newsletter sign|manage (?:cookies"
    r"|preferences|consent)|cookie (?:policy|settings|preferences)|terms (?:of (?:use|service)|and conditions"
    r"|& conditions)|privacy policy|thanks? (?:you )?for (?:sharing|reading|visiting|your (?:comment|visit))|(?:great"
    r"|nice|awesome|good) (?:post|article)\b|filed under|tagged (?:with|as)|last (?:updated|modified)|published (?:on"
    r"|by)|written by\b|advertisement\b|download (?:our|the) app\b|search (?:this|our|the) site\b|(?:tags?|categor(?:y"
    r"|ies)|topics): |your privacy\b|\d+ comments?\b|sponsored\b|404\b|page not found|access denied"
    r"|are you (?:a )?(?:human|robot)|verify you are)"
)
ASKS = re.compile(
    r"\?|\b(?:write|explain|describe|create|generate|draft|translate|list|give|how|why|what|which|who|when|where|tell"
    r"|design|suggest|help|summari[sz]e|rewrite|compose|compare|provide|identify|make|find|classify|define|convert"
    r"|as an?\b)\b"
)
"""A question or a request of any kind."""


def is_navigation(text: str) -> bool:
    """Return whether a text is site navigation: a menu, a cookie notice, a call to subscribe."""
    told = text.casefold().replace("’", "'").strip()
    if _TRAIL.fullmatch(told) or _MENUS.fullmatch(told):
        return True
    return bool(_FURNITURE.match(told)) and not ASKS.search(told)


_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.,$-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|\(\d{3}\) ?\d{3}[-. ]\d{4}"
    r"|\d{3}[-.]\d{3}[-.]\d{4}|\d{3}-\d{2}-\d{4}|(?:\d{4}[ -]){3}\d{4})(?![\w-])"
)
_MAX_PERSONAL_WORDS = 25
_ABOUT_DATA = re.compile(
    r"\b(?:regex|regular expression|valid\w*|extract|parse|format\w*|code|function|script|sql|json|html|python|java\w*"
    r"|replace|anonymi\w+|redact|mask|identify|signature|example|sample|table|csv|git|smtp|imap|dns|domain|username)\b",
    re.IGNORECASE,
)


def is_personal(text: str) -> bool:
    """Return whether a short text contains an e-mail address, or a telephone, insurance or card number.

    Longer texts and those about such data (a pattern that finds them, a table) may contain some.
    """
    plain = _PHONE.sub(" ", _MAIL.sub(" ", text))
    if plain == text or "\n" in text.strip() or len(text.split()) > _MAX_PERSONAL_WORDS:
        return False
    return not _ABOUT_DATA.search(plain)


_HARMLESS = re.compile(
    r"\b(?:bath|seed|photo|logic|zip|fork|j[aä]ger|cocoa|chocolate|cake|calorie|minecraft|game|novel|story|fictional"
    r"|movie|sex bomb|paint|glitter|smoke|stink|water balloon|mentos|defus\w+|disarm\w*|prevent|avoid|detect|stop"
    r"|history|weeds?|process\w*|thread|karaoke)\b"
)
_HARM = re.compile(
    r"\b(?:build|make|making|create|construct|assemble|cook|synthesi[sz]e|detonate|plant|produce|brew|buy) (?:(?:an?"
    r"|the|some|my|your|own|homemade|simple|cheap|small|pipe|dirty|nuclear|car|letter|fertilizer|crystal"
    r"|nail) ){0,4}(?:bombs?|explosives?|ieds?|molotov|napalm|nerve (?:gas|agent)|meth|methamphetamine|ricin|sarin"
    r"|bioweapon|chemical weapons?|ghost gun|silencer|fentanyl|heroin|cocaine|malware|ransomware|child porn\w*)\b"
    r"|\b(?:how (?:do|can|could|would|should) (?:i|we|you|one)|how to|ways? to|help me|best way to|steps to"
    r"|tell me how to) (?:\w+ ){0,2}(?:kill|murder|poison|strangle|stab|rape|kidnap|stalk|blackmail"
    r"|molest)(?:ing)? (?:someone|somebody|a (?:person|man|woman|child|kid|neighbou?r|human)|people|myself|(?:my|his"
    r"|her|their|your) (?:\w+ )?(?:wife|husband|boss|neighbou?r|mother|father|parents?|brother|sister|girlfriend"
    r"|boyfriend|ex|friend|child|children|partner|coworker|roommate))\b|\b(?:how (?:do|can|could) i|how to|ways? to"
    r"|best way to|help me) (?:\w+ )?(?:commit (?:suicide|murder|fraud|arson)|end my life|self[- ]harm|make a bomb"
    r"|launder money|counterfeit money|smuggle (?:drugs|guns|people)|break into (?:a|someone|my neighbou?r)"
    r"|hack (?:into )?(?:someone|a bank|my (?:ex|neighbou?r|girlfriend|boyfriend|wife))|steal (?:a|an|someone|money"
    r"|credit|identit)|forge (?:a|an) (?:passport|signature|id)|buy (?:drugs|stolen))"
)


def is_unsafe(text: str) -> bool:
    """Return whether a text asks how to make a weapon or hard drugs, or how to hurt, rob or defraud somebody."""
    told = plainly(text)
    return bool(_HARM.search(told)) and not _HARMLESS.search(told)


_VERBS = frozenset(
    """act add advise analyze analyse answer arrange ask assess brainstorm break build calculate can categorize change
    check choose cite classify code combine come compare complete compose compute consider construct continue
    contrast convert correct count create critique debate debug decide deduce define delete demonstrate derive
    describe design detect determine develop devise differentiate discuss distinguish divide do draft draw edit
    elaborate eliminate emulate enumerate estimate evaluate examine expand explain explore express extract fill
    find finish fix formulate generate get give go guess help highlight identify illustrate imagine implement
    improve include infer insert interpret introduce invent judge justify keep let list locate look make match
    measure mention merge model modify multiply name note observe offer optimize order organize outline
    paraphrase perform pick plan play please plot point predict prepare present pretend print produce proofread
    propose prove provide put rank rate read recall recite recommend reduce refactor reformat remove rename
    reorder rephrase replace reply report reproduce research resolve respond restate return review revise
    rewrite role run say select send separate set share shorten show simplify simulate sketch solve sort speak
    specify split state study substitute suggest summarize summarise sum suppose take talk teach tell test think
    transform translate try turn update use using verify view visualize walk want watch work write given if when
    in from for with while after before since as using during without let's lets assuming here there it's""".split()  # noqa: SIM905
)
_QUESTIONS = re.compile(
    r"\b(?:who|whom|whose|what|what's|when|where|why|which|how|whether|i|i'm|i've|me|my|mine|you|your|you're|we|our|us"
    r"|please|tell|explain|write|describe|vs|versus|differences?|ideas|tips|recipe|examples?|list|essay|poem|story"
    r"|summary|best|top|things|ways|places|reasons|facts|steps|pros|cons|benefits|advantages|disadvantages|causes"
    r"|effects|symptoms|meaning|definition)\b"
)
_FINITE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|could|may|might|will|would|must|should|did|does|do|consists?|contains?"
    r"|provides?)\b"
)
_OPEN_ENDS = (" called", " known as", " is", " are", " was", " were", " named")
"""Ends of a sentence for the model to complete."""

_JOINS = re.compile(r"\b(?:and|of|in|on|for|to|with|its|their|his|her|the|from|behind|through)\b")
_STOPS = frozenset("their there these those this that with from and about into over most many some other".split())  # noqa: SIM905
_DETERMINERS = frozenset({"a", "an", "the", "this", "that", "these", "those", "all", "some", "each", "any", "its"})
_POINTERS = frozenset({"this", "that", "it", "they", "these", "those", "there"})
_HEADING_WORDS = frozenset(
    [
        "history",
        "introduction",
        "overview",
        "types",
        "uses",
        "basics",
        "brief",
        "short",
        "guide",
        "origins",
        "importance",
    ]
)
_MAX_STATEMENT_WORDS, _MAX_HEADING_WORDS, _MAX_TITLE_WORDS, _MIN_STEM = 30, 10, 6, 4


def asks_nothing(text: str, segment: str) -> bool:
    """Return whether a text is one statement or heading on its segment's subject, and neither question nor request.

    People do write keywords, remarks about themselves and puzzles. So only a plain sentence or phrase without "I" or
    "you" counts, and only if the segment has half of the heading's words, or the statement's subject.
    """
    told = plainly(text)
    if "\n" in text.strip() or re.search(r"[?:;\"`{}=\d/|<>_…]|\.\.", told) or _QUESTIONS.search(told):
        return False
    if re.match(r"(?:yes|no|yeah|nope)[,.!]", told):
        return True
    found = words(told)
    if _is_title(text) and found[0] not in _VERBS:
        topics = _topics(found)
        return len(topics) > 1 and all(_in(topic, segment.casefold()) for topic in topics)
    if (
        not 3 <= len(found) <= _MAX_STATEMENT_WORDS
        or found[0] in _VERBS
        or found[0].endswith("ing")
        or re.search(r"[.!] ", told)
    ):
        return False
    lowered = segment.casefold()
    finite = _FINITE.search(told)
    if finite and finite.start() > 0 and not told.endswith(_OPEN_ENDS):
        subject = words(told[: finite.start()])
        topics = _topics(found if _POINTERS.issuperset(subject) else subject)
        return any(_in(topic, lowered) for topic in topics)
    ends = told.endswith((".", "!"))
    if ends and (len(found) > _MAX_HEADING_WORDS or found[1] in _DETERMINERS):
        return False
    if not ends and (len(found) > _MAX_HEADING_WORDS or not _JOINS.search(told)):
        return False
    topics = [topic for topic in _topics(found) if topic not in _HEADING_WORDS]
    return bool(topics) and 2 * sum(_in(topic, lowered) for topic in topics) >= len(topics)


def _is_title(text: str) -> bool:
    """Return whether a text has two to six words, each beginning with a capital."""
    parts = text.split()
    return 2 <= len(parts) <= _MAX_TITLE_WORDS and all(part.isalpha() and part[0].isupper() for part in parts)


def _topics(found: list[str]) -> list[str]:
    return [word for word in found if len(word) >= _MIN_STEM and word not in _STOPS]


def _in(word: str, told: str) -> bool:
    stem = word[: max(_MIN_STEM, len(word) - 2)].removesuffix("s")
    return bool(re.search(rf"\b{re.escape(stem)}", told))
