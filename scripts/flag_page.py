"""Write docs/vllm-flags.md from the table of flags."""

from __future__ import annotations

from pathlib import Path

from tandem.launch.flag_page import page

if __name__ == "__main__":
    Path(__file__).parent.parent.joinpath("docs", "vllm-flags.md").write_text(page())
