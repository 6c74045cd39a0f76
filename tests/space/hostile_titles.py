"""Titles that try to be more than text: markup, scripts, Markdown, templates, changes of direction, one long word."""

HOSTILE = {
    "X1": "<script>window.hit = 1</script> Saddle",
    "X2": "<img src=x onerror='window.hit = 2'> Saddle",
    "X3": "Saddle ** [click](javascript:window.hit=3) ** `code`",
    "X4": "Saddle \u202egnirts a \u2067 back",
    "X5": "Saddle" + "W" * 250,
    "X6": '"><svg onload="window.hit = 6"> Saddle ${window.hit = 7} {{constructor}}',
}
