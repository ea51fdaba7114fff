"""Fonts for pictures: matplotlib's own lacks many scripts, among them Bengali."""

import functools

# matplotlib's last font has a box for each character there is.
PLACEHOLDER = "Last Resort"


def font_families(words: list[str]) -> list[str]:
    """The fonts to draw `words` with: matplotlib's own, then installed ones for what it lacks.

    A character that no installed font has is drawn as a box. matplotlib 3.11 and later join the
    letters of scripts such as Bengali; earlier ones set them side by side.
    """
    from matplotlib import font_manager, rcParams

    families = list(rcParams["font.family"])
    missing = {character for word in words for character in word if not character.isspace()}
    missing -= characters_in(font_manager.findfont(font_manager.FontProperties()))
    for font in font_manager.fontManager.ttflist:
        if not missing:
            break
        if font.name.startswith(PLACEHOLDER):
            continue
        found = missing & characters_in(font.fname)
        if found:
            families.append(font.name)
            missing -= found
    return families


@functools.cache
def characters_in(path: str) -> frozenset[str]:
    """The characters that a font file has; none if matplotlib cannot read it."""
    from matplotlib import font_manager

    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
