"""English phrases of a model that does not do its task: refusals, and talk about the instruction."""

import re

from humpback_ray.prompts.instructions.subjects import ASKS, plainly

_SORRY = (
    r"(?:(?:i'm|i am) (?:very |so |really |terribly )?sorry|sorry|i apologi[sz]e|my apologies|apologies|unfortunately)"
)
_CANNOT = (
    r"(?:(?:i|we) (?:cannot|can'?t|can not|(?:am|are) (?:unable|not able) to|won't|will not|could ?n[o']t)|(?:i'm"
    r"|we're) (?:unable|not able) to|unable to)"
)
_SERVE = (
    r"(?:assist|help (?:you )?with|fulfil+|comply|provide|answer (?:this|that|the|your)|generate|create|produce"
    r"|determine|infer|formulate|write an? (?:instruction|question|prompt)|come up with|identify|respond|do (?:that"
    r"|this))\b"
)
_KIND = r"(?:ai|artificial intelligence|(?:large )?language model)"
_CLAIM = rf"an? (?:{_KIND}|{_KIND} (?:language )?(?:model|assistant|chatbot)|chatbot|virtual assistant)"
_NEGATED = r"i (?:cannot|can'?t|can not|do not|don't|am not|am unable|have no)\b|i'm (?:not|unable)\b|it is not\b"
_TEXT = (
    r"(?:text|passage|article|paragraph|excerpt|snippet|blog post|web ?page|document|content|input|segment|page"
    r"|context|information)"
)
_REFUSAL = re.compile(
    rf"{_SORRY}\b[^.?!]{{0,40}}?\b{_CANNOT} {_SERVE}"
    rf"|(?:{_SORRY},? (?:but )?)?as {_CLAIM},?[^.?!]{{0,50}}?\b(?:{_NEGATED})|(?:i am|i'm) (?:just "
    rf"|only )?{_CLAIM}(?=[.,;]| (?:developed|trained|created|called|designed)\b)|(?:{_SORRY},? (?:but )?)?(?:the|this"
    rf"|your)(?: given| provided)? {_TEXT}[^.?!]{{0,30}}? (?:is|seems|appears|was) "
    r"(?:to be )?(?:not |in|un)(?:suitable|appropriate|enough|clear|complete|sufficient|an? )"
    rf"|(?:{_SORRY},? (?:but )?)?(?:the|this|your)(?: given| provided)? {_TEXT} (?:does not|doesn't|do not) "
    r"(?:contain|provide|have|include|make|seem|appear)"
    rf"|(?:{_SORRY},? (?:but )?)?(?:there is|there's|there are) (?:no|not enough) (?:clear |specific |suitable )?"
    r"(?:instruction|question|text|information|context|content)\b"
    rf"|(?:{_SORRY},? (?:but )?)?it (?:is (?:not possible|impossible) to (?:generate|create|write|determine|infer)"
    rf"|(?:seems|appears|looks like) (?:that )?(?:the|this|your) {_TEXT})"
    r"|(?:i'm|i am) afraid (?:that )?(?:i|there|the)\b|i need (?:more|additional|further) (?:information|context"
    r"|details)\b|no (?:suitable |valid |clear )?(?:instruction|question|prompt|answer)s? (?:can|could|is|was|found"
    r"|available|given)\b"
)
_UNSURE = (
    r"(?:i'm|i am) not (?:quite |entirely |really )?(?:sure|certain) (?:what|how|which|if|that)[^.?!]{0,50}\b(?:you"
    r"|instruction|question|request|answer|text)\b|i (?:do not|don't|did not|didn't) (?:quite |fully "
    r"|really )?understand ?(?:what you|your|the (?:question|request|text)|[.!]|$)|(?:could|can"
    r"|would) you (?:please )?(?:clarify|(?:provide|give|share|send)(?: me)?(?: with)?(?: some| more| the| a"
    r"| additional| further)* (?:context|details?|information|text|passage|input))|(?:please )?(?:provide|share|give"
    r"|send)(?: me)?(?: with)? (?:more|the|some|additional|further) (?:context|details?|information|text|passage"
    r"|input)\b[^.?!]{0,60}(?:so (?:that )?i|and i|for me|i can)"
)
_AT_A_LOSS = (
    r"(?:i have no idea|i (?:do not|don't) know|i (?:am|'m) sorry|sorry|i apologize)[.!]*$|(?:can"
    r"|could) you (?:please )?(?:repeat|rephrase)|please (?:repeat|rephrase|clarify) (?:your|the)\b"
)
_ASKED_BACK = re.compile(rf"(?:{_SORRY},? (?:but )?)?(?:{_UNSURE})|{_AT_A_LOSS}")
_WITHOUT_QUESTION = re.compile(
    rf"{_CANNOT} (?:{_SERVE})|i (?:do not|don't) have (?:enough|sufficient|any|access|the ability)\b"
    rf"|{_SORRY},? (?:but )?{_CANNOT} \w+[.!]?$|{_SORRY}[,.!]? [^?]{{0,60}}\b(?:text|passage|content|request"
    rf"|instruction|page)\b"
)


def refuses(text: str) -> bool:
    """Return whether a text begins like a model that refuses, asks back, or calls itself a model.

    People also say what they cannot do: "I can't provide a receipt" counts only in a text without a question, and only
    verbs of serving count.
    """
    told = plainly(text)
    if _REFUSAL.match(told) or _ASKED_BACK.match(told):
        return True
    return "?" not in told and bool(_WITHOUT_QUESTION.match(told))


_REQUEST = r"(?:instruction|prompt|question|task|request|query|command)"
_NAMES_ONE = rf"(?:user |writing |possible |suitable |good |new |generated |suggested |potential |sample )*{_REQUEST}s?"
_OPENER = (
    r"(?:(?:sure(?: thing)?|certainly|absolutely|okay|ok|alright|great|got it|understood|no problem|of course"
    r"|as requested|here you (?:go|are)|let me think)\s*[!,.:]+\s*(?:so,? )?)"
)
_META = re.compile(
    rf"{_OPENER}(?:here|i |i'|this|the|let|below|what|how|why|explain|write|describe)|here you (?:go|are)\W"
    r"|(?:the )?answers? (?:is|are)\b(?!.*\?)|the (?:correct|right) answer\b|as an? (?:instruction|prompt|question)\W"
    rf"|{_OPENER}?(?:"
    r"(?:(?:here|below|the following)(?:'s| is| are| would be)?|(?:this|that)(?:'s| is))(?: an?| the| your| one| some"
    r"| my)? "
    rf"{_NAMES_ONE}\b(?! (?:that you|for you|i |about|on|from|of|regarding|and|for my|for the))"
    rf"|(?:\W{{0,3}})(?:{_NAMES_ONE}|(?:the |an? |one |my )?(?:rewritten|predicted|final|revised|corresponding"
    rf"|original|appropriate|best|possible|suitable|likely) {_NAMES_ONE})(?:\W{{0,3}}\d+)?\W{{0,3}}[:：]|(?:the|an?|one"
    rf"|my) (?:\w+ ){{0,2}}{_REQUEST}s? (?:that |which )?(?:(?:this|the) (?:\w+ )?{_TEXT} (?:answers?|responds?"
    r"|addresses)|could be|would be|might be|may be|for (?:this|the) (?:\w+ )?(?:text|passage|response|answer|output) )"
    rf"|(?:based on|given|from|for|judging by) (?:the|this) (?:\w+ )?{_TEXT},? (?:the|an?|one"
    rf"|my) (?:\w+ ){{0,2}}{_REQUEST}\b|(?:this|the) {_TEXT} (?:answers|responds to|addresses|describes|discusses"
    rf"|explains|is about|talks about|provides"
    r"|covers|is an? (?:answer|response|description|summary|article|overview))\b|(?:the|this) (?:user|person|asker"
    r"|questioner|reader|instruction|prompt|question)(?:'s \w+)? (?:wants?|is asking|asks|asked|would like|needs?"
    r"|is looking|seeks|requests?|should be|could be|would be|might be|is to)\b|i (?:would|could|might) (?:ask"
    r"|suggest|formulate|propose|phrase)\b"
    rf"|(?:{_REQUEST}|question) (?:answered|addressed) (?:by|in) (?:this|the)\b|(?:write|generate|create"
    rf"|come up with) (?:an?|the) (?:instruction|prompt) (?:that|for|to|whose|which)[^.?!]{{0,40}}\b(?:this"
    rf"|the) (?:\w+ )?{_TEXT}\b|(?:the |an? |one )?(?:\w+ )?{_REQUEST}s? (?:that|which) (?:this|the) {_TEXT}|(?:the"
    rf"|an?|one) (?:\w+ ){{1,2}}{_REQUEST}s? (?:is|are|might be|must be)\W{{0,2}}[:\"“])"
)
_HUMAN_LABEL = re.compile(r"\W{0,3}(?:question|task|query|problem|request|command)s?(?:\W{0,3}\d+)?\W{0,3}[:：]")
_FIELD = re.compile(r"\W{0,3}(?:title|summary|keywords?|abstract|headline|caption|topic|subject)\W{0,3}:")
_CLOSING = re.compile(
    r"[.?!)\]:] ?\(?(?:let me know if (?:you|this|there|that)\b|(?:i )?hope (?:this|that|it) helps\b"
    r"|is there anything else i\b|feel free to (?:modify|adjust|reach out|ask (?:if|for more|any))\b|note: (?:this"
    r"|the) (?:instruction|prompt|question)\b|this (?:instruction|prompt|question) (?:is|asks|can|could|would|requires"
    r"|prompts|encourages|captures)\b)[^\n?]*$"
)
_LETTER = re.compile(
    r"\b(?:e-?mail|letter|message|reply|rewrite|proofread|correct|edit|grammar|translate|draft|note)\b"
)


def is_meta(text: str) -> bool:
    """Return whether a text talks about the instruction instead of giving it: "Sure! Here is one", "Instruction: …".

    People do write "Question:" and similar labels before a question, so these are allowed.
    """
    told = plainly(text)
    if "<think" in told or (_META.match(told) and not _HUMAN_LABEL.match(told)):
        return True
    if _FIELD.match(told) and not ASKS.search(told):
        return True
    closing = _CLOSING.search(told)
    return bool(closing and closing.start() and not _LETTER.search(told[: closing.start()]))
