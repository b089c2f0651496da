"""Squares, arrows and words on a white card, which reads on a light page and on a dark one."""

from collections.abc import Callable, Iterable, Iterator
from html import escape

INK, GRAY, LIGHT, WHITE = "#333333", "#75797d", "#e3e6e8", "#ffffff"
TEAL, OCHRE, PURPLE, CORAL, BLUE, OLIVE = "#3f8f86", "#b5861c", "#8a6fb3", "#d0694a", "#4f80c8", "#76831f"

Corner = tuple[float, float]
Color = Callable[[int], str]


def card(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole picture; its title is what a screen reader says."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="15" fill="{INK}"'
    tip = '<path d="M0 0 L8 4 L0 8 z"/>'
    box = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto"'
    lines = [
        f'{head} font-family="Roboto, Helvetica, Arial, sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<defs><marker id="tip" {box}>{tip}</marker></defs>',
        f'<rect width="{width}" height="{height}" rx="8" fill="{WHITE}"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def word(x: float, y: float, text: object, fill: str = INK, anchor: str = "middle", size: int = 15) -> str:
    """Text whose base line is at `y`."""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{fill}">{escape(str(text))}</text>'


def square(x: float, y: float, side: float, fill: str, edge: str = WHITE) -> str:
    """With its top left corner there."""
    return f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{fill}" stroke="{edge}"/>'


def ring(x: float, y: float, radius: float, edge: str = WHITE) -> str:
    """Around this point."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="none" stroke="{edge}" stroke-width="2"/>'


def arrow(x: float, y: float, to_x: float, to_y: float, ink: str = INK) -> str:
    """From here to there."""
    line = f"M{x:g} {y:g} L{to_x:g} {to_y:g}"
    return f'<path d="{line}" stroke="{ink}" stroke-width="1.3" fill="none" marker-end="url(#tip)"/>'


class Tokens:
    """The squares of a grid of tokens in raster order, and where they are."""

    def __init__(self, corner: Corner, shape: tuple[int, ...], side: float) -> None:
        self.corner, self.shape, self.side = corner, shape, side

    def at(self, token: int) -> Corner:
        """The top left corner of a token."""
        row, column = divmod(token, self.shape[1])
        return self.corner[0] + column * self.side, self.corner[1] + row * self.side

    def middle(self, token: int) -> Corner:
        """Where a token has its number, or an arrow its end."""
        x, y = self.at(token)
        return x + self.side / 2, y + self.side / 2

    def squares(self, fill: Color) -> Iterator[str]:
        """One for each token."""
        for token in range(self.shape[0] * self.shape[1]):
            yield square(*self.at(token), self.side, fill(token))

    def numbers(self, text: Callable[[int], object], fill: Color, size: int = 13) -> Iterator[str]:
        """A word in each token."""
        for token in range(self.shape[0] * self.shape[1]):
            x, y = self.middle(token)
            yield word(x, y + 0.36 * size, text(token), fill(token), size=size)

    def cells(self, stride: int) -> Iterator[str]:
        """The lines between cells."""
        (x, y), (height, width) = self.corner, (self.side * length for length in self.shape)
        across = [f"M{x:g} {y + row * self.side:g} h{width:g}" for row in range(0, self.shape[0] + 1, stride)]
        down = [f"M{x + column * self.side:g} {y:g} v{height:g}" for column in range(0, self.shape[1] + 1, stride)]
        line = " ".join(across + down)
        yield f'<path d="{line}" stroke="{INK}" stroke-width="1.5" stroke-linecap="square" fill="none"/>'

    def below(self, text: str) -> str:
        """A caption."""
        height, width = (self.side * length for length in self.shape)
        return word(self.corner[0] + width / 2, self.corner[1] + height + 24, text)

    def above(self, text: str) -> str:
        """A title."""
        return word(self.corner[0] + self.side * self.shape[1] / 2, self.corner[1] - 12, text)
