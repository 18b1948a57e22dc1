"""English references to a text that the reader of an instruction does not see."""

import re

from humpback_ray.text.words import words

_IN = r"(?:in|from|by|per|of|on|to|throughout|within|using|about)"
_NAMED = (
    r"(?! (?:of|about|on|by|titled|called|entitled|named|that|which|you|i|we|box|field|file|editor|area|message|for"
    r"|from the|where|with the|element|tag|number|numbers|title|speed|size|layout|load|object|rank|builder|design)\b)"
)
_SEEN = r"(?:text|passage|article|paragraph|excerpt|snippet|blog post|web ?page|document)"
_ANY = (
    r"(?:text|passage|article|paragraph|excerpt|extract|snippet|(?:blog )?post|web ?page|web ?site|site|page|document"
    r"|section|chapter|content|material|reading|blog|guide|tutorial|review|interview|essay|report|study|newsletter"
    r"|thread|transcript|video|podcast|speech|source|description|comment|piece|segment|entry|letter|story|book|paper"
    r"|table|chart|graph|figure|image|picture|photo|diagram|list|recipe|news|press release|advertisement|listing"
    r"|profile|manual|faq|poem|email|lesson|context|data|information|details|dataset|data set)"
)
_TELLS = (
    r"(?:say|says|said|describes?|discuss(?:es)?|mentions?|explains?|argues?|suggests?|claims?|recommends?|states?"
    r"|covers?|provides?|offers?|tells?|teach|teaches|lists?|talks? about|focus(?:es)? on|refers?|conclude|imply"
    r"|implies|propose|present|presents|contain|contains|advise|give|gives|about|mean|address|include|use|uses|think"
    r"|feel|believe|want)"
)
_ITS = (
    r"(?:(?:main|central|key|primary|overall|general) (?:\w+ )?(?:ideas?|points?|topics?|themes?|purposes?|messages?"
    r"|arguments?|takeaways?|subjects?|focus|findings?|conclusions?)|topics?|purpose|title|tone|gist|subject|summary"
    r"|conclusion)"
)
_TREATS = (
    r"(?:summari[sz]e|paraphrase|rewrite|rephrase|shorten|proofread|explain|analy[sz]e|describe|outline|translate"
    r"|review|simplify|discuss|condense|evaluate|edit|read|classify|continue|correct|critique|extract|identify|list"
    r"|expand)"
)
_WRITER = r"(?:author|writer|narrator|speaker|blogger|reviewer|poster|interviewee|interviewer)"
_REFERENCE = re.compile(
    rf"\b(?:the|this|these) (?:above|preceding|foregoing|given|provided|previous|following) (?:{_SEEN}|information"
    rf"|content"
    r"|context|details|data|section|page|post)\b"
    rf"|\b(?:{_SEEN}|information|context|section|data|details|post) (?:given |provided |shown |quoted )?(?:above"
    rf"|below)\b|\b(?:according to|based (?:up|only|solely)? ?on|as (?:described|stated|mentioned|explained"
    rf"|shown) (?:in|on|by)|with reference to|in light of|^from|^using(?: only)?|referring to|given) (?:the"
    rf"|this) (?:{_SEEN}|context|(?:provided|given) {_ANY}|information provided|section|blog|post|site"
    rf"|website)\b{_NAMED}|\baccording to (?:the|this|these) {_ANY}\b{_NAMED}|\b{_IN} this (?:{_SEEN}|web ?site|site"
    rf"|page|section|chapter|post|blog|guide|tutorial|review|interview|essay|report|newsletter|thread|transcript|video"
    rf"|podcast|excerpt|extract|reading|material|story|image|picture|photo|diagram|figure|table|chart|study|lesson"
    rf"|poem|news|speech|piece)\b{_NAMED}|\b(?:does|did|is|do|are) (?:the|this) (?:passage|article|excerpt|paragraph"
    rf"|snippet)\b{_NAMED}|\b(?:does|did|do|would|can|could) (?:the|this|these) {_ANY} {_TELLS}\b|^what (?:is|are"
    rf"|was) the {_ANY} (?:about|called|saying|for|showing|trying|describing|mainly)\b|\b{_ANY} is this\b|^who (?:is"
    rf"|was|are) the {_WRITER}s?\W*$"
    r"|\b(?:shown|seen|depicted|visible|written|happening|going on) (?:in|on) (?:the|this) (?:image|picture|photo"
    r"|diagram|figure|table|chart|graph|video)|\b(?:summary|analysis|explanation|overview|translation|description"
    r"|paraphrase|review) of (?:this|it|that)[.!?]*$"
    rf"|\b(?:is|are|was) this {_ANY} (?:about|for|saying|describing|trying|called|from|mainly|written|talking"
    rf"|referring)\b|\bthis {_ANY} (?:{_TELLS}|is about|is for)\b|\b{_IN} the (?:passage|article|excerpt|paragraph"
    rf"|snippet)\b{_NAMED}|\b{_ITS} (?:of|in|from|behind) (?:the|this) {_ANY}\b{_NAMED}|\b(?:the"
    rf"|this) {_WRITER}(?:'s)? (?:{_TELLS}|mean|use|feel|think|opinion|view|views|point|argument|purpose|attitude"
    r"|position|perspective|tone|main|recommendation|claim|advice|experience|try|make|made|visit|like|likes|went|go)\b"
    rf"|\b(?:according to|does|did|would) (?:the|this) {_WRITER}\b(?! (?:of|who|that)\b)"
    r"|\b(?:mentioned|described|stated|discussed|listed|shown|given|provided|explained|presented|outlined|cited|quoted"
    r"|made|raised) "
    rf"(?:above|below|here|(?:in|on|by) (?:the|this) (?:{_SEEN}|section|page|post|website|site|author|video|guide"
    rf"|chapter))\b|^(?:(?:please |can you |could you )?{_TREATS} (?:the|this) {_ANY})\b{_NAMED}"
    rf"|^(?:(?:please )?(?:what|who|where|when|why|how)\b[^.?!]{{0,40}}\b(?:this|the above) (?:{_SEEN}|web ?site"
    rf"|section|post|page|story|image|picture|poem|video))\b{_NAMED}"
    r"|(?<!all of )(?<!none of )(?<!any of )\b(?:the|as) (?:above|aforementioned)[.?!]*$|\b(?:points?|facts?"
    r"|questions?|examples?|steps|items|events|ideas|sentences?|words|statements?) above\b"
    r"|(?<!all of )(?<!none of )(?<!any of )\b(?:based on|given|using|from|about|in) the above\b|\b(?:the following"
    r"|as follows|(?:listed |given |shown |provided )?below)[.:!?]*$"
)
_BARE = re.compile(
    rf"what (?:is|are|was|were) the {_ITS}[.?!]*|(?:please |can you |could you |now )?(?:(?:what do you think (?:of"
    rf"|about)|help me (?:with|understand)) (?:this|that)|is (?:this|that|it) (?:true|correct|right|real)"
    rf"|read this and [\w ]+|when was (?:this|it) (?:written|published|made)|who (?:wrote|made|said|created"
    rf"|published) (?:this|it)|(?:(?:{_TREATS}|define|answer|solve|tell me(?: more)? about|what(?:'s| is| are| does| do"
    r"| was)|who(?:'s| is| was)|why (?:is|are|does|do|did)|how (?:is|does|do|did)|where (?:is|was)|when (?:is|was"
    r"|did))(?: the (?:meaning|purpose|point|topic|theme|name) of| all| the| about| mainly| more about)? (?:this|that"
    r"|it|these|those|them)(?: (?:mean|to me|about|all about|for|do|work|say|called|in your own words|briefly"
    r"|in one sentence|in detail|further|please|happen|important))*))[.?!]*"
)
_GIVEN = re.compile(r"[:\n\"“«`](.*)", re.DOTALL)
_QUOTED = re.compile(r"[\"“«`][^\"”»`]{15,}")
_MENTIONED = re.compile(
    rf"\b(?:an?|his|her|my|our|your|their|whose|each|any|every|some|\w+'s) (?:[\w-]+ ){{0,3}}(?:{_ANY}|{_WRITER})"
)
_POINTED_AT = frozenset(re.findall(r"[a-z]+", f"{_ANY} {_WRITER} webpage website above below here following follows"))
"""Every reference contains one of these words; checking them is cheaper than the patterns."""

_MIN_GIVEN_WORDS, _MIN_WORDS_BEFORE = 3, 8


def refers_to_text(instruction: str) -> bool:
    """Return whether a text refers to another one ("the passage", "this page", "the author") without including it.

    It includes a text if one follows a colon, a line end or a quotation mark, if a quotation or other lines precede the
    reference, if it introduces the text before ("a journalist writes an article"), or if it contains a URL.
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
