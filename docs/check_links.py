"""Check that every relative link in the documentation leads somewhere: to a file, and to a heading where it names one.

Reads the Markdown files at the top of the repository and below docs/. Links to other hosts are not followed: a check
that fails when somebody else's server is down is soon ignored. Needs nothing but Python, so it also runs where nothing
is installed.

    python docs/check_links.py [FILE ...]
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`)[^\n]+?(?<!`)\1(?!`)")
# What stands between the brackets of a link is not looked at, so the link around a badge is seen as well as its image.
LINK = re.compile(r"\]\(\s*(<[^<>\n]*>|(?:[^\s()]|\([^\s()]*\))+)(?:\s+[\"'(][^)]*)?\)")
DEFINITION = re.compile(r"^ {0,3}\[(?!\^)[^\]\n]+\]:[ \t]*(<[^<>\n]*>|\S+)", re.MULTILINE)
HTML = re.compile(r"""<(?:a|img|source|video)\b[^>]*?\b(?:href|src|srcset)\s*=\s*["']([^"']+)["']""", re.IGNORECASE)
HTML_ANCHOR = re.compile(r"""<[a-z][^>]*?\b(?:id|name)\s*=\s*["']([^"']+)["']""", re.IGNORECASE)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)(?:\s+#+)?\s*$")
UNDERLINE = re.compile(r"^ {0,3}(?:=+|-+)\s*$")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def main(arguments: list[str]) -> int:
    """Print every broken link as file:line: reason. Returns 1 if there is one, as a process does."""
    pages = [Path(argument).resolve() for argument in arguments] or sorted(
        {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")}
    )
    broken = 0
    links = 0
    for page in pages:
        for number, target in links_of(page):
            links += 1
            reason = why_broken(page, target)
            if reason:
                broken += 1
                print(f"{page.relative_to(ROOT)}:{number}: {target}: {reason}")
    print(f"{links} links in {len(pages)} pages, {broken} broken", file=sys.stderr)
    return 1 if broken else 0


def prose_of(page: Path) -> str:
    """The page with comments and fenced code blocked out, line for line."""
    lines = []
    fence = ""
    text = COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), page.read_text("utf-8"))
    for line in text.splitlines():
        mark = FENCE.match(line)
        if fence:
            # A fence closes with its own character, at least as often, and nothing after it.
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            lines.append("")
        elif mark:
            fence = mark[1]
            lines.append("")
        else:
            lines.append(line)
    return "\n".join(lines)


def links_of(page: Path) -> Iterator[tuple[int, str]]:
    """Every target in the page, with the line it is on."""
    text = INLINE_CODE.sub(lambda code: " " * len(code[0]), prose_of(page))
    found = [match for pattern in (LINK, DEFINITION, HTML) for match in pattern.finditer(text)]
    for match in sorted(found, key=lambda match: match.start(1)):
        yield text.count("\n", 0, match.start(1)) + 1, match[1].strip("<>")


def why_broken(page: Path, target: str) -> str:
    """The reason why the target leads nowhere, or nothing."""
    if ELSEWHERE.match(target):
        return ""
    if target.startswith("/"):
        return "starts at the root of whatever host shows it; make it relative"
    path, _, anchor = target.partition("#")
    path = path.partition("?")[0]
    file = (page.parent / unquote(path)).resolve() if path else page
    if not file.is_relative_to(ROOT):
        return "leads out of the repository"
    if not exists_as_spelled(file):
        return "no such file"
    if anchor and file.suffix == ".md" and unquote(anchor) not in anchors_of(file):
        return f"{file.relative_to(ROOT)} has no such heading"
    return ""


def exists_as_spelled(file: Path) -> bool:
    """Whether the file is there under exactly this name: some file systems don't mind the case, web servers do."""
    while file != ROOT:
        if not file.exists() or file.name not in names_in(file.parent):
            return False
        file = file.parent
    return True


@cache
def names_in(folder: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in folder.iterdir())


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """The anchors that forges make from headings: lower case, punctuation gone, spaces to hyphens, repeats numbered."""
    anchors: set[str] = set()
    seen: dict[str, int] = {}
    before = ""
    for line in prose_of(page).splitlines():
        anchors.update(HTML_ANCHOR.findall(line))
        heading = HEADING.match(line)
        title = heading[1] if heading else before if UNDERLINE.match(line) else ""
        before = line.strip()
        if not title:
            continue
        text = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", title)  # a link in a heading counts as its text
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]*>", "", text).strip().lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        anchors.add(f"{slug}-{count}" if count else slug)
    return frozenset(anchors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
