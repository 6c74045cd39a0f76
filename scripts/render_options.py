"""Write docs/training_options.md: every option of training, from the fields that declare it.

python scripts/render_options.py
"""

from pathlib import Path

from allmrec_hf.cli.declared import PANELS, options_table
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.option_fields import Checked
from allmrec_hf.training.section_arguments import SECTIONS
from allmrec_hf.training.stage_arguments import StageArguments

PAGE = Path(__file__).parents[1] / "docs" / "training_options.md"
SHOWN = ("default", "paper", "quick")
HEAD = """# Options of training

Made by `scripts/render_options.py` from the fields that declare the options. An option has one name: a keyword of its
section in Python, a key of its section in YAML, and `--SECTION.option-name` on the command line; a flag of its own is
named. The last columns are the values of the presets.
"""


def page() -> str:
    """Return the page."""
    presets = {name: ALLMRecTrainingArguments("runs/x", name) for name in SHOWN}
    parts = [HEAD]
    for section, kind in SECTIONS.items():
        arguments = {name: getattr(args, section) for name, args in presets.items()}
        parts.append(f"## {PANELS[section]}\n\n{options_table(kind, arguments, kind.own_names())}\n")
    parts.append("## The training of each stage\n\nEvery stage has these: `--backbone.`, `--align.`, `--project.`.\n")
    for stage in ("backbone", "align", "project"):
        loops: dict[str, Checked] = {name: args.stages[stage] for name, args in presets.items()}
        names = StageArguments.names()
        parts.append(f"### Stage {stage}\n\n{options_table(StageArguments, loops, names)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
