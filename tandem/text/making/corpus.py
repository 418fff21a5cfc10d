"""Text to make small tokenizers from: modules that come with Python, and sentences in other scripts."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

MODULES = ("argparse.py", "textwrap.py", "typing.py", "ast.py")
SENTENCES = (
    "你好，世界！今天天气很好，我们去公园散步吧。",
    "请用一句话介绍北京和上海。",
    "東京は日本の首都です。ありがとうございます。",
    "안녕하세요, 만나서 반갑습니다.",
    "Ça va? Где находится библиотека? ¿Qué tal? Ελληνικά.",
    "🙂🚀 emoji 👩‍👩‍👧 and 12345 numbers, 3.14.",
)


@cache
def sample_texts() -> tuple[str, ...]:
    """About 300 kB of lines; the same on every machine with the same Python."""
    library = Path(sysconfig.get_paths()["stdlib"])
    lines = [line for name in MODULES for line in (library / name).read_text(encoding="utf-8").splitlines()]
    return (*lines, *SENTENCES * 8)
