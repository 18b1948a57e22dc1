"""A web page → its headers and the paragraphs under them, without the boilerplate that frames every page of a site.

Scripts and styles, navigation, page footers, asides, dialogs, hidden elements, form controls, and regions named by
their class or id (menu, breadcrumb, sidebar, cookie banner, share buttons, …) are left out. A `form` loses only its
controls, since some sites put whole pages inside one form. Lists keep their bullets and numbers, table rows become
lines with bars between cells, preformatted text keeps its lines. Text needs no `p`: every block element and every line
break ends a paragraph.

Hostile pages are dropped with a reason: `html_too_large`, `undecodable` (the bytes are not text in any charset),
`too_many_tags`, `too_deep`. Time and memory are linear in the page (see markup.py); nothing recurses.
"""

import re
from dataclasses import dataclass, field

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.corpus.encoding import characters, is_text
from humpback_ray.corpus.markup import Tag, attribute_values, scan
from humpback_ray.corpus.readers.base import Document, Unusable
from humpback_ray.text.clean import clean


class ExtractRecipe(Config):
    """How pages become text. The caps are ours; the paper does not describe its extraction."""

    max_html_bytes: int = Field(default=10_000_000, ge=1)
    """A larger page is dropped as `html_too_large`."""

    max_tags: int = Field(default=200_000, ge=1)
    """A page with more tags is dropped as `too_many_tags`."""

    max_depth: int = Field(default=256, ge=1)
    """A page with deeper nested block elements is dropped as `too_deep`; real pages stay below a hundred."""

    max_header_chars: int = Field(default=300, ge=1)
    """A longer header is really a paragraph: its text is kept as a paragraph under an empty header."""

    boilerplate_names: bool = True
    """Leave out regions whose class or id marks them as boilerplate."""

    max_link_lines: int | None = Field(default=3, ge=0)
    """More consecutive lines of nothing but links than this are a menu and are left out. None: off."""

    lenient_below_chars: int = Field(default=600, ge=0)
    """A page that gives less text than this is read again including `noscript`, hidden regions and regions that
    `boilerplate_names` leaves out (forums that render by script, consent walls around the article). The second reading
    counts if it is more than twice as long. 600 is the paper's minimum segment length, so such a page could give no
    segment."""


@dataclass(frozen=True, slots=True)
class Section:
    """A header and the text down to the next header of any level. Level 0: text before the first header."""

    level: int
    header: str
    paragraphs: tuple[str, ...]


def extract(document: Document, recipe: ExtractRecipe) -> list[Section]:
    """Return the sections of a document in order, at least one; plain text gives one section without a header.

    Raises:
        Unusable: `html_too_large`, `too_many_tags`, `undecodable`, `too_deep`, or `no_text`.
    """
    if document.html is None:
        lines = (" ".join(line.split()) for line in clean(document.text or "").split("\n"))
        sections = [Section(0, "", tuple(line for line in lines if line))]
    elif len(document.html) > recipe.max_html_bytes:
        raise Unusable("html_too_large")
    else:
        page = characters(document.html, document.charset)
        if not is_text(page):
            raise Unusable("undecodable")
        sections = _Page(recipe).sections(page)
        if (strict := _chars(sections)) < recipe.lenient_below_chars:
            lenient = _Page(recipe, lenient=True).sections(page)
            sections = lenient if _chars(lenient) > 2 * strict else sections
    sections = [section for section in sections if section.level or section.paragraphs]
    if not any(section.header or section.paragraphs for section in sections):
        raise Unusable("no_text")
    return sections


def _chars(sections: list[Section]) -> int:
    return sum(len(paragraph) for section in sections for paragraph in section.paragraphs)


_HEADERS = {f"h{level}": level for level in range(1, 7)}
_VOID = frozenset(
    "area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr".split()  # noqa: SIM905
)
_BLOCKS = frozenset(
    """address article aside blockquote body center dd details dialog dir div dl dt fieldset figcaption figure footer
    form frameset h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol option optgroup p pre section
    select summary table tbody tfoot thead tr td th caption ul listing plaintext search""".split()  # noqa: SIM905
)
_CELLS = frozenset({"td", "th"})
_CLOSES_HEADER = frozenset("article blockquote dl figure main ol p pre section table ul".split())  # noqa: SIM905
_NEVER_NAMED = frozenset("html body main article h1 h2 h3 h4 h5 h6".split())  # noqa: SIM905
_LEFT_OUT = frozenset(
    """nav footer aside dialog script style template noscript svg canvas audio video object applet map select datalist
    button textarea title iframe annotation annotation-xml xmp noembed noframes menu rp""".split()  # noqa: SIM905
)
_LEFT_OUT_ROLES = frozenset(
    """navigation banner contentinfo complementary search dialog alertdialog menu menubar toolbar tablist
    tooltip button""".split()  # noqa: SIM905
)
_WORTH_A_LOOK = re.compile(r"hidden|display|visibility|role|class|id\s*=", re.IGNORECASE)
_INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_FRAMING_NAME = re.compile(
    r"""(?:^|\s)
    (?!(?:has|have|with|without|w|no|content|fixed|main|show|is|hide|enable|disable|left|right|body|page|article)[-_])
    (?:[a-z]+[-_]{1,2})?(?:
    breadcrumbs? | navbar | navigation | nav | menu | sidebar | site-?footer | footer | cookies? | newsletter | popup
    | modal | adverts? | advertisement | ads? | adsbygoogle | sponsored | promo | skip-?link
    | share | sharing | share-?buttons? | sharedaddy | social | social-?(?:links|media|share|icons|buttons)
    | related | related-?(?:posts|articles|content|products|links) | recommended | read-?next | pagination | pager
    | comments | comment-?(?:list|form|respond) | respond | disqus_thread | tag-?cloud | tags-?links | toc
    | printfooter | catlinks | sr-only | visually-?hidden | screen-reader-text | editsection | reflist | jump-to-nav
    | consent | gdpr | subscribe | subscription | signup | login
    )
    (?:[-_]{1,2}(?:container|wrapper|inner|list|box|block|area|section|banner|bar|menu|nav|links|widget))?
    (?=\s|$)""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADER_TRAIL = re.compile(r"\s*(?:[¶§#🔗]|\[\s*edit\s*\])+\s*$", re.IGNORECASE)
# Implied end tags: start tag → (elements that it ends, elements at which the search for them stops).
_LISTS, _TABLE = frozenset({"ul", "ol", "menu", "dir"}), frozenset({"table"})
_IMPLIED_ENDS = {
    "li": (frozenset({"li"}), _LISTS),
    "dt": (frozenset({"dt", "dd"}), frozenset({"dl"})),
    "dd": (frozenset({"dt", "dd"}), frozenset({"dl"})),
    "tr": (frozenset({"tr"}), _TABLE),
    "td": (frozenset({"td", "th"}), frozenset({"tr", "table"})),
    "th": (frozenset({"td", "th"}), frozenset({"tr", "table"})),
    "tbody": (frozenset({"tbody", "thead", "tfoot"}), _TABLE),
    "tfoot": (frozenset({"tbody", "thead", "tfoot"}), _TABLE),
    "thead": (frozenset({"tbody", "thead", "tfoot"}), _TABLE),
}
_SCOPE = frozenset({"td", "th", "caption", "table"})  # an end tag inside does not close elements outside
_TABLE_PARTS = frozenset({"table", "tbody", "thead", "tfoot", "tr", "td", "th", "caption"})


@dataclass
class _Page:
    recipe: ExtractRecipe
    lenient: bool = False  # include content that a page hides until its scripts have run
    open: list[str] = field(default_factory=list)  # block elements, and inline ones that are left out
    left_out_at: int = -1  # depth of the element being left out; -1: none
    lists: list[int] = field(default_factory=list)  # next number of each open list; 0: bullets
    done: list[Section] = field(default_factory=list)
    level: int = 0
    header: str = ""
    heading: int = 0  # level of the header being read; 0: none
    paragraphs: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)
    prefix: str = ""
    has_text: bool = False  # whether the line holds more than whitespace
    in_link: bool = False
    link_chars: int = 0  # characters of the line that are in links
    link_lines: int = 0  # consecutive lines, up to here, of nothing but links

    def sections(self, page: str) -> list[Section]:
        tags = 0
        for token in scan(page):
            if isinstance(token, str):
                if self.left_out_at < 0:
                    self._read(token)
                continue
            tags += 1
            if token.name == "a":
                self.in_link = not token.ends
            if tags > self.recipe.max_tags:
                raise Unusable("too_many_tags")
            if token.ends:
                self._end(token.name)
            else:
                self._start(token)
        self._end_heading()
        self._end_section(0, "")
        return self.done

    def _read(self, text: str) -> None:
        self.line.append(text)
        self.has_text = self.has_text or not text.isspace()
        if self.in_link:
            self.link_chars += len(text.strip())

    def _start(self, tag: Tag) -> None:
        name = tag.name
        if name in _VOID:
            if self.left_out_at < 0 and name in ("br", "hr"):
                self._end_line()
            return
        if name in _BLOCKS:
            self._imply_ends(name)
            if self.left_out_at < 0:
                self._start_block(name)
        leaves_out = self.left_out_at < 0 and self._is_left_out(tag)
        if not (name in _BLOCKS or leaves_out or (self.left_out_at >= 0 and name == self.open[self.left_out_at])):
            return
        if len(self.open) >= self.recipe.max_depth:
            raise Unusable("too_deep")
        if leaves_out:
            self.left_out_at = len(self.open)
        self.open.append(name)

    def _start_block(self, name: str) -> None:
        if name in _CELLS:
            if self.has_text:
                self.line.append(" | ")
            return
        if self.heading and (name in _HEADERS or (name in _CLOSES_HEADER and self.has_text)):
            self._end_heading()
        if self.heading:
            self.line.append(" ")
            return
        self._end_line()
        if name in _HEADERS:
            self.heading = _HEADERS[name]
        elif name in ("ul", "ol"):
            self.lists.append(1 if name == "ol" else 0)
        elif name == "li":
            number = self.lists[-1] if self.lists else 0
            self.prefix = f"{number}. " if number else "- "
            if number:
                self.lists[-1] += 1

    def _end(self, name: str) -> None:
        if name in ("br", "p") and name not in self.open:
            if self.left_out_at < 0:
                self._end_line()
            return
        if self.left_out_at < 0:
            if name not in _BLOCKS:
                return
            if name in _HEADERS:
                self._end_heading()
        at = self._opened_at(name)
        if at >= 0:
            self._close(at)

    def _opened_at(self, name: str) -> int:
        for at in range(len(self.open) - 1, -1, -1):
            opened = self.open[at]
            if opened == name or (name in _HEADERS and opened in _HEADERS):
                return at
            if opened in _SCOPE and name not in _TABLE_PARTS:
                return -1
            if opened == "table":
                return -1
        return -1

    def _imply_ends(self, name: str) -> None:
        ends, until = _IMPLIED_ENDS.get(name, (None, None))
        if self.open and (self.open[-1] == "p" or (name in _HEADERS and self.open[-1] in _HEADERS)):
            self._close(len(self.open) - 1)
        if ends is None or until is None:
            return
        for at in range(len(self.open) - 1, -1, -1):
            if self.open[at] in ends:
                self._close(at)
                return
            if self.open[at] in until:
                return

    def _close(self, at: int) -> None:
        if self.left_out_at >= at:
            self.left_out_at = -1
        elif self.left_out_at < 0:
            self._end_blocks(self.open[at:])
        del self.open[at:]

    def _end_blocks(self, names: list[str]) -> None:
        for name in names:
            if name in ("ul", "ol") and self.lists:
                self.lists.pop()
        if self.heading:
            self.line.append(" ")
        elif any(name not in _CELLS and name in _BLOCKS for name in names):
            self._end_line()

    def _is_left_out(self, tag: Tag) -> bool:
        if tag.name in _LEFT_OUT:
            return not (self.lenient and tag.name == "noscript")
        if self.lenient or tag.name in ("html", "body") or not _WORTH_A_LOOK.search(tag.attributes):
            return False
        values = attribute_values(tag.attributes)
        role, name = values.get("role", "").lower(), values.get("id", "")
        if role in _LEFT_OUT_ROLES or (_is_hidden(values) and not (role == "tabpanel" or name.startswith("S:"))):
            return True
        if not self.recipe.boilerplate_names or tag.name in _NEVER_NAMED:
            return False
        return bool(_FRAMING_NAME.search(values.get("class", "")) or _FRAMING_NAME.search(name))

    def _end_line(self) -> None:
        if not self.line:
            return
        text, link_chars = "".join(self.line), self.link_chars
        self._clear()
        if "pre" in self.open or "listing" in self.open:
            lines = [line.rstrip() for line in clean(text).split("\n")]
        else:
            lines = [" ".join(clean(text).split())]
        for line in lines:
            if line.strip(" |"):
                self._add(line.removesuffix(" |"), is_link=link_chars >= len(line.replace(" | ", "")))

    def _clear(self) -> None:
        self.line, self.link_chars, self.has_text = [], 0, False

    def _add(self, line: str, is_link: bool) -> None:
        if not is_link:
            self._end_links()
        self.paragraphs.append(self.prefix + line)
        self.link_lines += is_link
        self.prefix = ""

    def _end_links(self) -> None:
        if self.recipe.max_link_lines is not None and self.link_lines > self.recipe.max_link_lines:
            del self.paragraphs[-self.link_lines :]
        self.link_lines = 0

    def _end_heading(self) -> None:
        if not self.heading:
            return
        level, self.heading = self.heading, 0
        text = " ".join(clean("".join(self.line)).split())
        self._clear()
        if len(text) > self.recipe.max_header_chars:
            self._end_section(level, "")
            self.paragraphs.append(text)
        else:
            self._end_section(level, _HEADER_TRAIL.sub("", text))

    def _end_section(self, level: int, header: str) -> None:
        self._end_line()
        self._end_links()
        self.done.append(Section(self.level, self.header, tuple(self.paragraphs)))
        self.level, self.header, self.paragraphs, self.prefix = level, header, [], ""


def _is_hidden(values: dict[str, str]) -> bool:
    if values.get("hidden", "until-found") != "until-found" or values.get("aria-hidden") == "true":
        return True
    return bool(_INVISIBLE.search(values.get("style", "")))
