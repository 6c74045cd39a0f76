from __future__ import annotations

import polars as pl
import pytest

from allmrec_hf.data.text import plain_text, plain_title


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("5&quot; &amp;quot;case&amp;quot;", '5" "case"'),
        ("<b>Bold</b><br />new\n line", "Bold new line"),
        ("a &lt; b and 3 < 4 > 2 <3", "a < b and 3 < 4 > 2 <3"),
        ("x<script>var a = '<b>';</script>y", "x y"),
        ("caf&eacute; &#8217;s &#x41;", "café ’s A"),
        ("AT&T &unknown; R&D", "AT&T &unknown; R&D"),
        ("<p> </p>", None),
        (None, None),
    ],
)
def test_html_becomes_plain_text(raw: str | None, plain: str | None) -> None:
    assert plain_text(pl.Series("t", [raw], dtype=pl.String)).to_list() == [plain]


def test_page_code_in_place_of_a_title_becomes_null() -> None:
    titles = pl.Series("t", ["var aPageStart = (new Date()).getTime();\n", "Real &amp; true", None])
    assert plain_title(titles).to_list() == [None, "Real & true", None]
