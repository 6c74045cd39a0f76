"""What decided one recommendation, and what the LLM says when asked in words.

python examples/explain.py
"""

import argparse
from pathlib import Path

from transformers import pipeline

import allmrec_hf
from allmrec_hf import TASKS, draw_explanation, explain, generate_answers, write_explanation

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=allmrec_hf.DEMO_CHECKPOINT)
parser.add_argument("--output", type=Path, default=Path("runs/explanation"))
parser.add_argument("--picture", action="store_true", help="draw it too (pip install 'allmrec-hf[benchmark]')")
parser.add_argument("--tiny", action="store_true", help="the default is small already")
options = parser.parse_args()

recommend = pipeline("recommendation", model=options.model)
model, processor = recommend.model, recommend.processor
history = processor.catalog.item_ids[10:14]
best = recommend({"history": history}, top_k=1)[0]

explanation = explain(model, processor, history, best["item_id"], contrast=True)
print("recommended:", best["title"])
for one in explanation["contributions"]:
    left_out, gradient = one["leave_one_out"]["total"], one["gradient_x_input"]["total"]
    print(f"{left_out:+8.3f} {gradient:+8.3f}  {one.get('title', 'user vector')}")
print("written to", write_explanation(explanation, options.output / "explanation.json"))
if options.picture:
    print("drawn to", draw_explanation(explanation, options.output / "explanation.svg"))

known = processor.catalog.indices(history)
item = processor.catalog.indices([best["item_id"]])
print("favourite category:", generate_answers(model, processor, TASKS["favourite-category"], [known])[0])
print("why this:", generate_answers(model, processor, TASKS["why-this"], [known], item)[0])
