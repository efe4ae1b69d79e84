"""Writes the drawings of docs/architecture.md.

    python scripts/drawings.py

* ``DRAWINGS`` - file name -> the function that draws it
* ``rooms``, ``a_frame``, ``a_checkpoint`` - the drawings
* ``Drawing`` - boxes, bands and arrows as SVG
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FILLS = {
    "plain": ("#ffffff", "#5c6bc0"),
    "strong": ("#e8eaf6", "#3949ab"),
    "file": ("#fff8e1", "#c28f00"),
    "author": ("#e8f5e9", "#388e3c"),
    "outside": ("#f5f5f5", "#757575"),
}
"""Kind of a box -> the colours of its area and of its line."""
LINE = 19
"""Height of a line of text."""


class Drawing:
    """A drawing of boxes and arrows.

    Args:
        width: In pixels.
        title: What a reader of the page hears who does not see the drawing.
    """

    def __init__(self, width: int, title: str) -> None:
        self.width, self.height, self.title = width, 0, title
        self._behind: list[str] = []
        self._parts: list[str] = []

    def band(self, top: int, bottom: int, label: str, right: int = 0) -> None:
        """Draws an area behind boxes, with a label at its upper left edge."""
        self._behind.append(
            f'<rect x="8" y="{top}" width="{self.width - 16 - right}" height="{bottom - top}" rx="10" class="band"/>'
        )
        self._text(20, top + 18, label, "label")
        self.height = max(self.height, bottom)

    def box(
        self, x: int, y: int, width: int, title: str, lines: Sequence[str] = (), kind: str = "plain", side: str = ""
    ) -> int:
        """Draws a box.

        Args:
            x, y: Its upper left corner.
            width: Its width.
            title: The first line; a name of the code is in backticks.
            lines: More lines.
            kind: One of ``FILLS``.
            side: A text at the right edge.

        Returns:
            The y of its lower edge.
        """
        height = 16 + LINE * (1 + len(lines))
        fill, stroke = FILLS[kind]
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'
        )
        self._text(x + 12, y + 8 + 14, title.strip("`"), "code title" if title.startswith("`") else "title")
        if side:
            self._text(x + width - 12, y + 8 + 14, side, "side")
        for number, line in enumerate(lines, start=1):
            self._text(x + 12, y + 8 + 14 + LINE * number, line.strip("`"), "code" if line.startswith("`") else "")
        self.height = max(self.height, y + height)
        return y + height

    def arrow(self, *points: tuple[int, int], label: str = "", dashed: bool = False) -> None:
        """Draws a line through points that ends in an arrow; the label stands right of the middle of its first part."""
        path = " ".join(f"{x},{y}" for x, y in points)
        style = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<polyline points="{path}" class="arrow"{style} marker-end="url(#end)"/>')
        if label:
            (x, y), (to_x, to_y) = points[:2]
            self._text((x + to_x) // 2 + 8, (y + to_y) // 2 + 4, label, "label")

    def note(self, x: int, y: int, text: str) -> None:
        """Writes a text without a box."""
        self._text(x, y, text, "label")

    def _text(self, x: int, y: int, text: str, kind: str) -> None:
        self._parts.append(f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>')

    def svg(self) -> str:
        """Returns the file's content."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height + 8}" '
                f'viewBox="0 0 {self.width} {self.height + 8}" role="img">',
                f"<title>{escape(self.title)}</title>",
                "<style>text{font:14px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2430}"
                ".title{font-weight:600}.code{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
                "font-size:12.5px}.side{fill:#5f6673;font-size:12.5px;text-anchor:end}"
                ".label{fill:#5f6673;font-size:12.5px}"
                ".band{fill:#f3f4f8}.arrow{fill:none;stroke:#5f6673;stroke-width:1.6}</style>",
                '<defs><marker id="end" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
                '<path d="M0,0 L9,4 L0,8 z" fill="#5f6673"/></marker></defs>',
                f'<rect width="{self.width}" height="{self.height + 8}" rx="10" fill="#ffffff"/>',
                *self._behind,
                *self._parts,
                "</svg>\n",
            ]
        )


ROOMS = (
    ("ppo_continuous_single_file.py", "the algorithm: options, agent, rollout, advantages, update, loop", "PyTorch"),
    ("__main__", "the command line, one line per command", ""),
    ("lab", "experiments with rewards: score, lint, audit, ablate, the page", "aiohttp, Plotly"),
    ("look", "playing yourself, and watching an agent", "a window"),
    ("evaluation", "complete episodes, their statistics and tables", "PyTorch"),
    ("games", "bringing a game: ROMs, start states, search, doctor", "stable-retro"),
    ("training", "parallel environments, ranks, checkpoints, log", "PyTorch, TensorBoard"),
    ("env", "one environment: emulator, actions, observations", "stable-retro, Gymnasium"),
)
"""The rooms, from top to bottom: name, what they hold, what they import from outside."""


def rooms() -> Drawing:
    """The rooms of the project; the arrow is the direction of imports."""
    drawing = Drawing(
        600, "The rooms of the project, from the training script at the top to reward terms at the bottom"
    )
    y = 12
    for number, (name, holds, imported) in enumerate(ROOMS):
        title = f"`{name}`" if number == 0 else f"`kart_rewards/{name}{'.py' if name == '__main__' else '/'}`"
        bottom = drawing.box(40, y, 548, title, [holds], "strong" if number == 0 else "plain", imported)
        y = bottom + 10
    bottom = drawing.box(
        40, y, 548, "`kart_rewards/*.py`",
        [
            "what authors of rewards use: RAM, terms, done rules, drives, tests",
            "terms and rules need no emulator, PyTorch or Gymnasium",
        ],
        "author",
    )  # fmt: skip
    drawing.arrow((22, 16), (22, bottom - 2))
    return drawing


def a_frame() -> Drawing:
    """How a frame becomes a gradient."""
    drawing = Drawing(
        600, "How a frame becomes a gradient: buttons, emulator, RAM, terms, reward, rollout, advantages, gradient"
    )
    left, right, wide = 40, 320, 240
    drawing.box(left, 12, 520, "The agent's action becomes buttons", ["`env/actions.py: Actions.frames`"])
    drawing.arrow((300, 66), (300, 112))
    drawing.note(312, 88, "one set of buttons per frame")

    drawing.band(76 + 20, 460, "each emulated frame, four per step")
    drawing.box(
        left,
        126,
        520,
        "The emulator runs one frame",
        ["`env/core.py: Drawing.frame`"],
        side="drawn only if the agent sees it",
    )
    drawing.arrow((160, 180), (160, 206), label="RAM")
    drawing.arrow((440, 180), (440, 206), label="screen, once a step")
    drawing.box(left, 208, wide, "Bytes become a snapshot", ["`ram.py: RamLayout.reader`"])
    drawing.arrow((160, 262), (160, 286), label="ram.speed, ram.laps, …")
    drawing.box(
        left, 288, wide, "Your terms and rules", ["`rewards.py: EpisodeRewards`", "`done.py: EpisodeDone`"], "author"
    )
    drawing.arrow((160, 361), (160, 386), label="weighted sum")
    drawing.box(left, 388, wide, "The transform", ["`rewards.py: make_transform`"])
    drawing.box(
        right, 208, wide, "Grey, 84 x 84, four stacked", ["`env/observations.py:`", "`  ScreenObserver.observe`"]
    )

    drawing.arrow((160, 442), (160, 488))
    drawing.note(168, 478, "reward: the sum of four frames")
    drawing.arrow((440, 281), (440, 488))
    drawing.box(left, 490, 520, "A step's results lie in shared memory", ["`training/vector.py: EnvGroups.recv`"])
    drawing.arrow((300, 544), (300, 588))
    drawing.note(312, 562, "from one process per core to the trainer")

    drawing.band(572, 872, "each update: 64 steps of 16 environments")
    drawing.box(left, 602, 520, "The rollout: 64 x 16 observations, actions, rewards", ["`collect`"], "strong")
    drawing.arrow((300, 656), (300, 680))
    drawing.box(left, 682, 520, "Advantages and returns", ["`gae`"], "strong")
    drawing.arrow((300, 736), (300, 760), label="minibatches of 256, four epochs")
    drawing.box(
        left, 762, 520, "Loss, gradient, new weights",
        ["`update: loss.backward, ranks.average_gradients,`", "`  clip_grad_norm_, optimizer.step`"], "strong",
    )  # fmt: skip
    drawing.arrow((300, 835), (300, 860), (584, 860), (584, 39), (562, 39), dashed=True)
    drawing.note(40, 864, "the agent answers with the new weights")
    return drawing


def a_checkpoint() -> Drawing:
    """How a checkpoint is written and read: from a run to a resumed run, and to a watched agent."""
    drawing = Drawing(
        600,
        "How a checkpoint is written and read: a run writes agent.pt and best.pt; resume, watch and evaluate read them",
    )
    left, right, wide = 24, 312, 264
    drawing.box(left, 12, 552, "The run, after an update", ["`training/run.py: Run.after_update`"], "strong")
    drawing.arrow((156, 66), (156, 100), label="every 20 updates")
    drawing.arrow((444, 66), (444, 100), label="every 50 updates")
    drawing.box(
        left, 102, wide, "Everything of all ranks",
        ["weights, optimizer, options,", "random numbers, fingerprints,", "all emulators and terms' memory"],
    )  # fmt: skip
    drawing.box(
        right,
        102,
        wide,
        "Evaluation",
        ["complete episodes per course,", "deterministic actions:", "better than the best so far?"],
    )
    drawing.arrow((156, 194), (156, 220))
    drawing.arrow((444, 194), (444, 220), label="yes")
    drawing.box(left, 222, wide, "`save_checkpoint`", ["a temporary file, renamed", "once it is complete on disk"])
    drawing.box(right, 222, wide, "`save_atomically`", ["the same, but of weights,", "options and fingerprints alone"])
    drawing.arrow((156, 295), (156, 320))
    drawing.arrow((444, 295), (444, 320))
    drawing.box(left, 322, wide, "`agent.pt, agent-STEPS.pt`", ["in the run's folder; the last three"], "file")
    drawing.box(right, 322, wide, "`best.pt`", ["in the run's folder"], "file")
    drawing.arrow((156, 376), (156, 420))
    drawing.arrow((444, 376), (444, 420))
    drawing.arrow((288, 349), (300, 349), (300, 398), (400, 398), (400, 420), dashed=True)

    drawing.box(
        left, 422, 552, "`Checkpoint.load`", ["reads tensors and plain values alone, checks each type: no code runs"]
    )
    drawing.arrow((156, 476), (156, 510), label="--resume")
    drawing.arrow((444, 476), (444, 510), label="watch, evaluate")
    drawing.box(
        left,
        512,
        wide,
        "`Resumption.decide`",
        ["are terms, weights, variables,", "ROM and core the same? If not,", "the run is refused"],
    )
    drawing.box(
        right,
        512,
        wide,
        "`is_own`",
        ["did this user make it here?", "If not, code that it names", "runs only with --trust"],
    )
    drawing.arrow((156, 604), (156, 630))
    drawing.arrow((444, 604), (444, 630))
    drawing.box(left, 632, wide, "The run goes on", ["on a CPU, bit for bit"], "strong")
    drawing.box(right, 632, wide, "A policy plays", ["`TorchPolicy`"], "strong")
    return drawing


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "rooms.svg": rooms,
    "a_frame.svg": a_frame,
    "a_checkpoint.svg": a_checkpoint,
}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (IMAGES / name).write_text(draw().svg(), encoding="utf-8")
