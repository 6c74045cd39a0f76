"""Put the stored reports of docs/results into the pages that show them, between their markers.

python scripts/render_results.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from allmrec_hf.evaluation.report import format_markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def tables() -> dict[str, str]:
    """Return Markdown by marker name."""
    pages = [RESULTS / f"{name}.md" for name in ("demo_seeds", "backbones_with_llm")]
    found = {page.stem: page.read_text(encoding="utf-8").split("\n\n", 1)[1].strip() for page in pages}
    for name in ("explanation_agreement", "free_text"):
        found[name] = (RESULTS / f"{name}.md").read_text(encoding="utf-8").strip()
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "methods" in report:
            found[path.stem] = format_markdown(report).strip()
    return found


def main() -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in the pages."""
    for page in (ROOT / "README.md", RESULTS / "README.md", ROOT / "docs" / "explaining.md"):
        text = page.read_text(encoding="utf-8")
        for name, table in tables().items():
            pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
            text = re.sub(pattern, f"<!-- {name} -->\n{table}\n<!-- /{name} -->".replace("\\", r"\\"), text, flags=re.S)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
