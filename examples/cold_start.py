"""New items by their text alone: no retraining, and they survive saving.

python examples/cold_start.py
"""

import argparse
import tempfile

from transformers import pipeline

import allmrec_hf

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=allmrec_hf.DEMO_CHECKPOINT)
parser.add_argument("--tiny", action="store_true", help="the default is small already")
options = parser.parse_args()

recommend = pipeline("recommendation", model=options.model)
catalog = recommend.processor.catalog
history = catalog.item_ids[10:14]

new = [
    {"item_id": "NEW1", "title": catalog.title(12) + " II", "description": "A sequel."},
    {"item_id": "NEW2", "title": "A Title of Unknown Words"},
]
print("added", recommend.add_items(new))

request = {"history": history, "candidates": ["NEW1", "NEW2", *catalog.item_ids[20:24]]}
for item in recommend(request):
    print(item["rank"], item["item_id"], item["title"], round(item["score"], 2))

with tempfile.TemporaryDirectory() as folder:
    recommend.save_pretrained(folder)
    again = pipeline("recommendation", model=folder)
    same = [item["item_id"] for item in again(request)] == [item["item_id"] for item in recommend(request)]
    print("the same after saving and loading:", same)
