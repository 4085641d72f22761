"""Paragraphs of Markdown notes: every file of a folder, headings and short lines left out."""

from pathlib import Path


def documents(data):
    for file in sorted(Path(data.path).expanduser().rglob("*.md")):
        for number, paragraph in enumerate(file.read_text(encoding="utf-8").split("\n\n")):
            if len(paragraph) >= 40 and not paragraph.startswith("#"):
                yield f"{file.name}:{number}", paragraph
