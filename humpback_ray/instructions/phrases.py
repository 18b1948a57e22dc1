"""What an instruction says: turns of phrase of a model or a page, in English, that no person's request is made of."""

import re

from humpback_ray.words import words


def _told(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


_SORRY = r"(?:(?:i'm|i am) (?:very |so |really |terribly )?sorry|sorry|i apologi[sz]e|my apologies|apologies|unfortunately)"
_CANNOT = (
    r"(?:(?:i|we) (?:cannot|can'?t|can not|(?:am|are) (?:unable|not able) to|won't|will not|could ?n[o']t)"
    r"|(?:i'm|we're) (?:unable|not able) to|unable to)"
)
_SERVE = (
    r"(?:assist|help (?:you )?with|fulfil+|comply|provide|answer (?:this|that|the|your)|generate|create|produce|determine"
    r"|infer|formulate|write an? (?:instruction|question|prompt)|come up with|identify|respond|do (?:that|this))\b"
)
_KIND = r"(?:ai|artificial intelligence|(?:large )?language model)"
_CLAIM = rf"an? (?:{_KIND}|{_KIND} (?:language )?(?:model|assistant|chatbot)|chatbot|virtual assistant)"
_NEGATED = r"i (?:cannot|can'?t|can not|do not|don't|am not|am unable|have no)\b|i'm (?:not|unable)\b|it is not\b"
_TEXT = (
    r"(?:text|passage|article|paragraph|excerpt|snippet|blog post|web ?page|document|content|input|segment|page|context"
    r"|information)"
)
_REFUSAL = re.compile(
    rf"{_SORRY}\b[^.?!]{{0,40}}?\b{_CANNOT} {_SERVE}"
    rf"|(?:{_SORRY},? (?:but )?)?as {_CLAIM},?[^.?!]{{0,50}}?\b(?:{_NEGATED})"
    rf"|(?:i am|i'm) (?:just |only )?{_CLAIM}(?=[.,;]| (?:developed|trained|created|called|designed)\b)"
    rf"|(?:{_SORRY},? (?:but )?)?(?:the|this|your)(?: given| provided)? {_TEXT}[^.?!]{{0,30}}? (?:is|seems|appears|was) "
    r"(?:to be )?(?:not |in|un)(?:suitable|appropriate|enough|clear|complete|sufficient|an? )"
    rf"|(?:{_SORRY},? (?:but )?)?(?:the|this|your)(?: given| provided)? {_TEXT} (?:does not|doesn't|do not) "
    r"(?:contain|provide|have|include|make|seem|appear)"
    rf"|(?:{_SORRY},? (?:but )?)?(?:there is|there's|there are) (?:no|not enough) (?:clear |specific |suitable )?"
    r"(?:instruction|question|text|information|context|content)\b"
    rf"|(?:{_SORRY},? (?:but )?)?it (?:is (?:not possible|impossible) to (?:generate|create|write|determine|infer)"
    rf"|(?:seems|appears|looks like) (?:that )?(?:the|this|your) {_TEXT})"
    r"|(?:i'm|i am) afraid (?:that )?(?:i|there|the)\b|i need (?:more|additional|further) (?:information|context|details)\b"
    r"|no (?:suitable |valid |clear )?(?:instruction|question|prompt|answer)s? (?:can|could|is|was|found|available|given)\b"
)
_UNSURE = (
    r"(?:i'm|i am) not (?:quite |entirely |really )?(?:sure|certain) (?:what|how|which|if|that)[^.?!]{0,50}\b"
    r"(?:you|instruction|question|request|answer|text)\b"
    r"|i (?:do not|don't|did not|didn't) (?:quite |fully |really )?understand ?(?:what you|your|the (?:question|request|text)|[.!]|$)"
    r"|(?:could|can|would) you (?:please )?(?:clarify|(?:provide|give|share|send)(?: me)?(?: with)?"
    r"(?: some| more| the| a| additional| further)* (?:context|details?|information|text|passage|input))"
    r"|(?:please )?(?:provide|share|give|send)(?: me)?(?: with)? (?:more|the|some|additional|further) "
    r"(?:context|details?|information|text|passage|input)\b[^.?!]{0,60}(?:so (?:that )?i|and i|for me|i can)"
)
_AT_A_LOSS = (
    r"(?:i have no idea|i (?:do not|don't) know|i (?:am|'m) sorry|sorry|i apologize)[.!]*$"
    r"|(?:can|could) you (?:please )?(?:repeat|rephrase)|please (?:repeat|rephrase|clarify) (?:your|the)\b"
)
_ASKED_BACK = re.compile(rf"(?:{_SORRY},? (?:but )?)?(?:{_UNSURE})|{_AT_A_LOSS}")
_WITHOUT_QUESTION = re.compile(
    rf"{_CANNOT} (?:{_SERVE})|i (?:do not|don't) have (?:enough|sufficient|any|access|the ability)\b"
    rf"|{_SORRY},? (?:but )?{_CANNOT} \w+[.!]?$"
    rf"|{_SORRY}[,.!]? [^?]{{0,60}}\b(?:text|passage|content|request|instruction|page)\b"
)


def refuses(text: str) -> bool:
    """Return whether a text begins as a model that refuses, asks back, or speaks of itself as one.

    People say what they cannot do, too: "I can't provide a receipt" counts only where nothing is asked, and no other
    verbs count than those of somebody who serves.
    """
    told = _told(text)
    if _REFUSAL.match(told) or _ASKED_BACK.match(told):
        return True
    return "?" not in told and bool(_WITHOUT_QUESTION.match(told))


_REQUEST = r"(?:instruction|prompt|question|task|request|query|command)"
_NAMES_ONE = rf"(?:user |writing |possible |suitable |good |new |generated |suggested |potential |sample )*{_REQUEST}s?"
_OPENER = (
    r"(?:(?:sure(?: thing)?|certainly|absolutely|okay|ok|alright|great|got it|understood|no problem|of course|as requested"
    r"|here you (?:go|are)|let me think)\s*[!,.:]+\s*(?:so,? )?)"
)
_META = re.compile(
    rf"{_OPENER}(?:here|i |i'|this|the|let|below|what|how|why|explain|write|describe)|here you (?:go|are)\W"
    r"|(?:the )?answers? (?:is|are)\b|the (?:correct|right) answer\b"
    r"|as an? (?:instruction|prompt|question)\W"
    rf"|{_OPENER}?(?:"
    r"(?:(?:here|below|the following)(?:'s| is| are| would be)?|(?:this|that)(?:'s| is))(?: an?| the| your| one| some| my)? "
    rf"{_NAMES_ONE}\b(?! (?:that you|for you|i |about|on|from|of|regarding|and|for my|for the))"
    rf"|(?:\W{{0,3}})(?:{_NAMES_ONE}|(?:the |an? |one |my )?(?:rewritten|predicted|final|revised|corresponding|original"
    rf"|appropriate|best|possible|suitable|likely) {_NAMES_ONE})(?:\W{{0,3}}\d+)?\W{{0,3}}[:：]"
    rf"|(?:the|an?|one|my) (?:\w+ ){{0,2}}{_REQUEST}s? (?:that |which )?(?:(?:this|the) (?:\w+ )?{_TEXT} (?:answers?|responds?"
    r"|addresses)|could be|would be|might be|may be|for (?:this|the) (?:\w+ )?(?:text|passage|response|answer|output) )"
    rf"|(?:based on|given|from|for|judging by) (?:the|this) (?:\w+ )?{_TEXT},? (?:the|an?|one|my) (?:\w+ ){{0,2}}{_REQUEST}\b"
    rf"|(?:this|the) {_TEXT} (?:answers|responds to|addresses|describes|discusses|explains|is about|talks about|provides"
    r"|covers|is an? (?:answer|response|description|summary|article|overview))\b"
    r"|(?:the|this) (?:user|person|asker|questioner|reader|instruction|prompt|question)(?:'s \w+)? (?:wants?|is asking|asks"
    r"|asked|would like|needs?|is looking|seeks|requests?|should be|could be|would be|might be|is to)\b"
    r"|i (?:would|could|will|can|'ll) (?:ask|write|say|suggest|generate|create|formulate|propose|phrase)\b"
    rf"|(?:{_REQUEST}|question) (?:answered|addressed) (?:by|in) (?:this|the)\b"
    rf"|(?:write|generate|create|come up with) (?:an?|the) (?:instruction|prompt) (?:that|for|to|whose|which)[^.?!]{{0,40}}"
    rf"\b(?:this|the) (?:\w+ )?{_TEXT}\b"
    rf"|(?:the |an? |one )?(?:\w+ )?{_REQUEST}s? (?:that|which) (?:this|the) {_TEXT}"
    rf"|(?:the|an?|one|my) (?:\w+ ){{0,2}}{_REQUEST}s? (?:is|are|might be|must be)\W{{0,2}}[:\"“])"
)
_HUMAN_LABEL = re.compile(r"\W{0,3}(?:question|task|query|problem|request|command)s?(?:\W{0,3}\d+)?\W{0,3}[:：]")
_FIELD = re.compile(r"\W{0,3}(?:title|summary|keywords?|abstract|headline|caption|topic|subject)\W{0,3}:")
_CLOSING = re.compile(
    r"[.?!)\]:] ?\(?(?:let me know if (?:you|this|there|that)\b|(?:i )?hope (?:this|that|it) helps\b"
    r"|is there anything else i\b|feel free to (?:modify|adjust|reach out|ask (?:if|for more|any))\b|note: (?:this|the) (?:instruction|prompt"
    r"|question)\b|this (?:instruction|prompt|question) (?:is|asks|can|could|would|requires|prompts|encourages|captures)\b)"
    r"[^\n?]*$"
)
_LETTER = re.compile(r"\b(?:e-?mail|letter|message|reply|rewrite|proofread|correct|edit|grammar|translate|draft|note)\b")


def is_meta(text: str) -> bool:
    """Return whether a text speaks of the instruction instead of giving it: "Sure! Here is one", "Instruction: …".

    "Question:" and the like before a question are what people write.
    """
    told = _told(text)
    if "<think" in told or _META.match(told) and not _HUMAN_LABEL.match(told):
        return True
    if _FIELD.match(told) and not _ASKS.search(told):
        return True
    closing = _CLOSING.search(told)
    return bool(closing and closing.start() and not _LETTER.search(told[: closing.start()]))


_IN = r"(?:in|from|by|per|of|on|to|throughout|within|using|about)"
_NAMED = (
    r"(?! (?:of|about|on|by|titled|called|entitled|named|that|which|you|i|we|box|field|file|editor|area|message|for"
    r"|from the|where|with the|element|tag|number|numbers|title|speed|size|layout|load|object|rank|builder|design)\b)"
)
_SEEN = r"(?:text|passage|article|paragraph|excerpt|snippet|blog post|web ?page|document)"
_ANY = (
    r"(?:text|passage|article|paragraph|excerpt|extract|snippet|(?:blog )?post|web ?page|web ?site|site|page|document|section"
    r"|chapter|content|material|reading|blog|guide|tutorial|review|interview|essay|report|study|newsletter|thread|transcript"
    r"|video|podcast|speech|source|description|comment|piece|segment|entry|letter|story|book|paper|table|chart|graph|figure"
    r"|image|picture|photo|diagram|list|recipe|news|press release|advertisement|listing|profile|manual|faq|poem|email|lesson"
    r"|context|data|information|details|dataset|data set)"
)
_TELLS = (
    r"(?:say|says|said|describes?|discuss(?:es)?|mentions?|explains?|argues?|suggests?|claims?|recommends?|states?|covers?"
    r"|provides?|offers?|tells?|teach|teaches|lists?|talks? about|focus(?:es)? on|refers?|conclude|imply|implies|propose"
    r"|present|presents|contain|contains|advise|give|gives|about|mean|address|include|use|uses|think|feel|believe|want)"
)
_ITS = (
    r"(?:(?:main|central|key|primary|overall|general) (?:\w+ )?(?:ideas?|points?|topics?|themes?|purposes?|messages?|arguments?"
    r"|takeaways?|subjects?|focus|findings?|conclusions?)|topics?|purpose|title|tone|gist|subject|summary|conclusion)"
)
_TREATS = (
    r"(?:summari[sz]e|paraphrase|rewrite|rephrase|shorten|proofread|explain|analy[sz]e|describe|outline|translate|review"
    r"|simplify|discuss|condense|evaluate|edit|read|classify|continue|correct|critique|extract|identify|list|expand)"
)
_WRITER = r"(?:author|writer|narrator|speaker|blogger|reviewer|poster|interviewee|interviewer)"
_REFERENCE = re.compile(
    rf"\b(?:the|this|these) (?:above|preceding|foregoing|given|provided|previous|following) (?:{_SEEN}|information|content"
    r"|context|details|data|section|page|post)\b"
    rf"|\b(?:{_SEEN}|information|context|section|data|details|post) (?:given |provided |shown |quoted )?(?:above|below)\b"
    rf"|\b(?:according to|based (?:up|only|solely)? ?on|as (?:described|stated|mentioned|explained|shown) (?:in|on|by)"
    rf"|with reference to|in light of|^from|^using(?: only)?|referring to|given) (?:the|this) "
    rf"(?:{_SEEN}|context|(?:provided|given) {_ANY}|information provided|section|blog|post|site|website)\b{_NAMED}"
    rf"|\baccording to (?:the|this|these) {_ANY}\b{_NAMED}"
    rf"|\b{_IN} this (?:{_SEEN}|web ?site|site|page|section|chapter|post|blog|guide|tutorial|review|interview|essay|report"
    rf"|newsletter|thread|transcript|video|podcast|excerpt|extract|reading|material|story|image|picture|photo|diagram|figure"
    rf"|table|chart|study|lesson|poem|news|speech|piece)\b{_NAMED}"
    rf"|\b(?:does|did|is|do|are) (?:the|this) (?:passage|article|excerpt|paragraph|snippet)\b{_NAMED}"
    rf"|\b(?:does|did|do|would|can|could) (?:the|this|these) {_ANY} {_TELLS}\b"
    rf"|^what (?:is|are|was) the {_ANY} (?:about|called|saying|for|showing|trying|describing|mainly)\b"
    rf"|\b{_ANY} is this\b|^who (?:is|was|are) the {_WRITER}s?\W*$"
    r"|\b(?:shown|seen|depicted|visible|written|happening|going on) (?:in|on) (?:the|this) (?:image|picture|photo|diagram|figure|table|chart|graph|video)"
    r"|\b(?:summary|analysis|explanation|overview|translation|description|paraphrase|review) of (?:this|it|that)[.!?]*$"
    rf"|\b(?:is|are|was) this {_ANY} (?:about|for|saying|describing|trying|called|from|mainly|written|talking|referring)\b"
    rf"|\bthis {_ANY} (?:{_TELLS}|is about|is for)\b"
    rf"|\b{_IN} the (?:passage|article|excerpt|paragraph|snippet)\b{_NAMED}"
    rf"|\b{_ITS} (?:of|in|from|behind) (?:the|this) {_ANY}\b{_NAMED}"
    rf"|\b(?:the|this) {_WRITER}(?:'s)? (?:{_TELLS}|mean|use|feel|think|opinion|view|views|point|argument|purpose|attitude"
    r"|position|perspective|tone|main|recommendation|claim|advice|experience|try|make|made|visit|like|likes|went|go)\b"
    rf"|\b(?:according to|does|did|would) (?:the|this) {_WRITER}\b(?! (?:of|who|that)\b)"
    r"|\b(?:mentioned|described|stated|discussed|listed|shown|given|provided|explained|presented|outlined|cited|quoted|made|raised) "
    rf"(?:above|below|here|(?:in|on|by) (?:the|this) (?:{_SEEN}|section|page|post|website|site|author|video|guide|chapter))\b"
    rf"|^(?:(?:please |can you |could you )?{_TREATS} (?:the|this) {_ANY})\b{_NAMED}"
    rf"|^(?:(?:please )?(?:what|who|where|when|why|how)\b[^.?!]{{0,40}}\b(?:this|the above) (?:{_SEEN}|web ?site|section|post"
    rf"|page|story|image|picture|poem|video))\b{_NAMED}"
    r"|(?<!all of )(?<!none of )(?<!any of )\b(?:the|as) (?:above|aforementioned)[.?!]*$"
    r"|\b(?:points?|facts?|questions?|examples?|steps|items|events|ideas|sentences?|words|statements?) above\b"
    r"|(?<!all of )(?<!none of )(?<!any of )\b(?:based on|given|using|from|about|in) the above\b"
    r"|\b(?:the following|as follows|(?:listed |given |shown |provided )?below)[.:!?]*$"
)
_BARE = re.compile(
    rf"what (?:is|are|was|were) the {_ITS}[.?!]*|(?:please |can you |could you |now )?(?:(?:what do you think (?:of|about)|help me (?:with|understand)) (?:this|that)|is (?:this|that|it) (?:true|correct|right|real)|read this and [\w ]+|when was (?:this|it) (?:written|published|made)|who (?:wrote|made|said|created|published) (?:this|it)|(?:(?:{_TREATS}|define|answer|solve|tell me(?: more)? about|what(?:'s| is| are| does| do"
    r"| was)|who(?:'s| is| was)|why (?:is|are|does|do|did)|how (?:is|does|do|did)|where (?:is|was)|when (?:is|was|did))"
    r"(?: the (?:meaning|purpose|point|topic|theme|name) of| all| the| about| mainly| more about)? (?:this|that|it|these|those|them)"
    r"(?: (?:mean|to me|about|all about|for|do|work|say|called|in your own words|briefly|in one sentence|in detail|further|please"
    r"|happen|important))*))[.?!]*"
)
_GIVEN = re.compile(r"[:\n\"“«`](.*)", re.DOTALL)
_QUOTED = re.compile(r"[\"“«`][^\"”»`]{15,}")
_MENTIONED = re.compile(rf"\b(?:an?|his|her|my|our|your|their|whose|each|any|every|some|\w+'s) (?:[\w-]+ ){{0,3}}(?:{_ANY}|{_WRITER})")
_POINTED_AT = frozenset(re.findall(r"[a-z]+", f"{_ANY} {_WRITER} webpage website above below here following follows"))
"""Words one of which every reference holds: a look at them is cheaper than the patterns."""

_MIN_GIVEN_WORDS, _MIN_WORDS_BEFORE = 3, 8


def refers_to_text(instruction: str) -> bool:
    """Return whether a text points at another one ("the passage", "this page", "the author") and has none.

    Given is what follows after a colon, a line end or a quotation mark; a text on other lines or a quotation before; an
    article that is spoken of before ("a journalist writes an article"); an address.
    """
    told = instruction.casefold().replace("’", "'")
    if "http" in told or "www." in told:
        return False
    if _BARE.fullmatch(told.strip()):
        return True
    if _POINTED_AT.isdisjoint(words(told)):
        return False
    return any(not _is_given(told[: match.start()], told[match.end() :]) for match in _REFERENCE.finditer(told))


def _is_given(before: str, after: str) -> bool:
    given = _GIVEN.search(after)
    if given and len(words(given[1])) >= _MIN_GIVEN_WORDS:
        return True
    if _QUOTED.search(before) or _MENTIONED.search(before):
        return True
    return "\n" in before and len(words(before.rpartition("\n")[0])) >= _MIN_WORDS_BEFORE


_MENU = (
    r"(?:home|about(?: us)?|contact(?: us)?|blog|news|log ?in|log ?out|sign ?(?:in|up|out)|register|search|menu|faqs?|help"
    r"|shop|store|cart|products?|services|support|privacy(?: policy)?|terms(?: of (?:use|service))?|site ?map|careers|press"
    r"|next|previous|prev|back|more|share|tweet|print|e-?mail|subscribe|rss|archives?|categories|tags|account|my account"
    r"|gallery|events|forum|home ?page|team|pricing|download|events?|facebook|twitter|instagram|pinterest|linkedin|top"
    r"|create (?:an )?account|privacy choices)"
)
_TRAIL = re.compile(rf"\W*{_MENU}(?:\s*[|»›·•/>→,\n\t–—-]\s*[\w &']{{1,30}}){{2,}}\W*|\W*{_MENU}(?:\s*[|/»›·•]\s*{_MENU})+\W*")
_MENUS = re.compile(rf"\W*{_MENU}(?:(?:\s|\W)+{_MENU}){{2,}}\W*")
_FURNITURE = re.compile(
    r"\W{0,3}(?:skip to (?:main |the )?(?:content|navigation)|jump to\b|accept (?:all )?(?:the )?cookies\b|(?:we|our (?:web)?site)"
    r" uses? (?:\w+ )?cookies|this (?:web ?)?site uses (?:\w+ )?cookies|by (?:continuing|clicking|using|browsing|closing)\b"
    r"[^.]{0,60}\b(?:you (?:agree|accept|consent)|cookies)|click here\b|sign up (?:for|to) (?:our|the|get|receive)\b"
    r"|subscribe (?:to|now|for)\b[^.]{0,40}\b(?:newsletter|updates|channel|now|today)?|read (?:more|next|the full)\b"
    r"|continue reading\b|copyright\b[^a-z]{0,8}\d{4}|(?:©|\(c\)) ?(?:\d{4}|copyright)|all rights reserved"
    r"|(?:log|sign) ?in (?:to|or|with)\b|login (?:/|or|to)\b|create an account\b|share (?:this|on|via)\b"
    r"|leave a (?:comment|reply)\b|post(?:ed)? (?:a comment|by|on|in) |page \d+ of \d+|back to (?:top|home)\b"
    r"|related (?:posts|articles|stories|products|topics)\b|table of contents|(?:please )?enable (?:javascript|cookies)"
    r"|javascript (?:is|must)|follow us\b|like us on\b|add to (?:cart|basket|wishlist)|your cart\b|buy now\b|shop now\b"
    r"|free shipping|view (?:all|more|cart)\b|see (?:all|more)\b|show (?:more|less)\b|load more|loading\.|you are here"
    r"|previous (?:post|article|page)|next (?:post|article|page)|newsletter sign|manage (?:cookies|preferences|consent)"
    r"|cookie (?:policy|settings|preferences)|terms (?:of (?:use|service)|and conditions|& conditions)|privacy policy"
    r"|thanks? (?:you )?for (?:sharing|reading|visiting|your (?:comment|visit))|(?:great|nice|awesome|good) (?:post|article)\b"
    r"|filed under|tagged (?:with|as)|last (?:updated|modified)|published (?:on|by)|written by\b|advertisement\b"
    r"|download (?:our|the) app\b|search (?:this|our|the) site\b|(?:tags?|categor(?:y|ies)|topics): |your privacy\b|\d+ comments?\b"
    r"|sponsored\b|404\b|page not found|access denied|are you (?:a )?(?:human|robot)|verify you are)"
)
_ASKS = re.compile(
    r"\?|\b(?:write|explain|describe|create|generate|draft|translate|list|give|how|why|what|which|who|when|where|tell|design"
    r"|suggest|help|summari[sz]e|rewrite|compose|compare|provide|identify|make|find|classify|define|convert|as an?\b)\b"
)


def is_navigation(text: str) -> bool:
    """Return whether a text is the furniture of a site: its menu, its cookie notice, its calls to subscribe."""
    told = text.casefold().replace("’", "'").strip()
    if _TRAIL.fullmatch(told) or _MENUS.fullmatch(told):
        return True
    return bool(_FURNITURE.match(told)) and not _ASKS.search(told)


_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.,$-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}[-.]\d{3}[-.]\d{4}"
    r"|\d{3}-\d{2}-\d{4}|(?:\d{4}[ -]){3}\d{4})(?![\w-])"
)
_MAX_PERSONAL_WORDS = 25
_ABOUT_DATA = re.compile(
    r"\b(?:regex|regular expression|valid\w*|extract|parse|format\w*|code|function|script|sql|json|html|python|java\w*"
    r"|replace|anonymi\w+|redact|mask|identify|signature|example|sample|table|csv|git|smtp|imap|dns|domain|username)\b",
    re.IGNORECASE,
)


def is_personal(text: str) -> bool:
    """Return whether a short text names an e-mail address, or a telephone, insurance or card number.

    Longer texts and those about such data (a pattern that finds them, a table) may hold some.
    """
    plain = _PHONE.sub(" ", _MAIL.sub(" ", text))
    if plain == text or "\n" in text.strip() or len(text.split()) > _MAX_PERSONAL_WORDS:
        return False
    return not _ABOUT_DATA.search(plain)


_HARMLESS = re.compile(
    r"\b(?:bath|seed|photo|logic|zip|fork|j[aä]ger|cocoa|chocolate|cake|calorie|minecraft|game|novel|story|fictional|movie|sex"
    r" bomb|paint|glitter|smoke|stink|water balloon|mentos|defus\w+|disarm\w*|prevent|avoid|detect|stop|history|weeds?)\b"
)
_HARM = re.compile(
    r"\b(?:build|make|making|create|construct|assemble|cook|synthesi[sz]e|detonate|plant|produce|brew|buy) "
    r"(?:(?:an?|the|some|my|your|own|homemade|simple|cheap|small|pipe|dirty|nuclear|car|letter|fertilizer|crystal|nail) ){0,4}"
    r"(?:bombs?|explosives?|ieds?|molotov|napalm|nerve (?:gas|agent)|meth|methamphetamine|ricin|sarin|bioweapon"
    r"|chemical weapons?|ghost gun|silencer|fentanyl|heroin|cocaine|malware|ransomware|child porn\w*)\b"
    r"|\b(?:how (?:do|can|could|would|should) (?:i|we|you|one)|how to|ways? to|help me|best way to|steps to|tell me how to) "
    r"(?:\w+ ){0,2}(?:kill|murder|poison|strangle|stab|rape|kidnap|stalk|blackmail|molest)(?:ing)? "
    r"(?:someone|somebody|a (?:person|man|woman|child|kid|neighbou?r|human)|people|myself|(?:my|his|her|their|your) "
    r"(?:\w+ )?(?:wife|husband|boss|neighbou?r|mother|father|parents?|brother|sister|girlfriend|boyfriend|ex|friend|child"
    r"|children|partner|coworker|roommate))\b"
    r"|\b(?:how (?:do|can|could) i|how to|ways? to|best way to|help me) (?:\w+ )?(?:commit (?:suicide|murder|fraud|arson)"
    r"|end my life|self[- ]harm|make a bomb|launder money|counterfeit money|smuggle (?:drugs|guns|people)"
    r"|break into (?:a|someone|my neighbou?r)|hack (?:into )?(?:someone|a bank|my (?:ex|neighbou?r|girlfriend|boyfriend|wife))"
    r"|steal (?:a|an|someone|money|credit|identit)|forge (?:a|an) (?:passport|signature|id)|buy (?:drugs|stolen))"
)


def is_unsafe(text: str) -> bool:
    """Return whether a text asks how to make a weapon or hard drugs, or how to hurt, rob or defraud somebody."""
    told = _told(text)
    return bool(_HARM.search(told)) and not _HARMLESS.search(told)


_VERBS = frozenset(
    """act add advise analyze analyse answer arrange ask assess brainstorm break build calculate can categorize change check
    choose cite classify code combine come compare complete compose compute consider construct continue contrast convert
    correct count create critique debate debug decide deduce define delete demonstrate derive describe design detect
    determine develop devise differentiate discuss distinguish divide do draft draw edit elaborate eliminate emulate enumerate
    estimate evaluate examine expand explain explore express extract fill find finish fix formulate generate get give go
    guess help highlight identify illustrate imagine implement improve include infer insert interpret introduce invent
    judge justify keep let list locate look make match measure mention merge model modify multiply name note observe offer
    optimize order organize outline paraphrase perform pick plan play please plot point predict prepare present pretend
    print produce proofread propose prove provide put rank rate read recall recite recommend reduce refactor reformat remove
    rename reorder rephrase replace reply report reproduce research resolve respond restate return review revise rewrite
    role run say select send separate set share shorten show simplify simulate sketch solve sort speak specify split state
    study substitute suggest summarize summarise sum suppose take talk teach tell test think transform translate try turn
    update use using verify view visualize walk want watch work write given if when in from for with while after before
    since as using during without let's lets assuming here there it's""".split()  # noqa: SIM905
)
_QUESTIONS = re.compile(
    r"\b(?:who|whom|whose|what|what's|when|where|why|which|how|whether|i|i'm|i've|me|my|mine|you|your|you're|we|our|us|please"
    r"|tell|explain|write|describe|vs|versus|difference|ideas|tips|recipe|example|examples|list|essay|poem|story|summary)\b"
)
_FINITE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|could|may|might|will|would|must|should|did|does|do|consists?|contains?|provides?)\b"
)
_OPEN_ENDS = (" called", " known as", " is", " are", " named")
"""A sentence to be completed."""

_JOINS = re.compile(r"\b(?:and|of|in|on|for|to|with|its|their|his|her|the|from|behind|through)\b")
_STOPS = frozenset("their there these those this that with from and about into over most many some other".split())  # noqa: SIM905
_DETERMINERS = frozenset({"a", "an", "the", "this", "that", "these", "those", "all", "some", "each", "any", "its"})
_POINTERS = frozenset({"this", "that", "it", "they", "these", "those", "there"})
_HEADING_WORDS = frozenset("history introduction overview types uses basics brief short guide origins importance".split())  # noqa: SIM905
_MAX_STATEMENT_WORDS, _MAX_HEADING_WORDS, _MAX_TITLE_WORDS, _MIN_STEM = 30, 10, 6, 4


def asks_nothing(text: str, segment: str) -> bool:
    """Return whether a text is one statement or heading on its segment's subject, and neither question nor request.

    People do write keywords, remarks on themselves and puzzles; so only a plain sentence or phrase counts that speaks
    of nobody, and has half of a heading's words, or a statement's subject, from the segment.
    """
    told = _told(text)
    if "\n" in text.strip() or re.search(r"[?:;\"`{}=\d/|<>_…]|\.\.", told) or _QUESTIONS.search(told):
        return False
    if re.match(r"(?:yes|no|yeah|nope)[,.!]", told):
        return True
    found = words(told)
    if _is_title(text) and found[0] not in _VERBS:
        topics = _topics(found)
        return len(topics) > 1 and all(_in(topic, segment.casefold()) for topic in topics)
    if not 3 <= len(found) <= _MAX_STATEMENT_WORDS or found[0] in _VERBS or found[0].endswith("ing") or re.search(r"[.!] ", told):
        return False
    lowered = segment.casefold()
    finite = _FINITE.search(told)
    if finite and 0 < finite.start() and not told.endswith(_OPEN_ENDS):
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
    """Return whether every word of a text of two to six words begins with a capital."""
    parts = text.split()
    return 2 <= len(parts) <= _MAX_TITLE_WORDS and all(part.isalpha() and part[0].isupper() for part in parts)


def _topics(found: list[str]) -> list[str]:
    return [word for word in found if len(word) >= _MIN_STEM and word not in _STOPS]


def _in(word: str, told: str) -> bool:
    stem = word[: max(_MIN_STEM, len(word) - 2)].removesuffix("s")
    return bool(re.search(rf"\b{re.escape(stem)}", told))
