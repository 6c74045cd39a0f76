"""Push a trained model to the Hub and load it back. Set HF_TOKEN, or log in with `hf auth login`.

python examples/share.py --model runs/games --repo your-org/a-llmrec-games
"""

import argparse

from transformers import pipeline

import allmrec_hf

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=allmrec_hf.DEMO_CHECKPOINT)
parser.add_argument("--repo", required=True)
parser.add_argument("--private", action="store_true")
parser.add_argument("--tiny", action="store_true", help="the default is small already")
options = parser.parse_args()

print("pushed to", allmrec_hf.push_checkpoint(options.model, options.repo, private=options.private or None))
recommend = pipeline("recommendation", model=options.repo)
history = recommend.processor.catalog.item_ids[10:14]
for item in recommend({"history": history}, top_k=3):
    print(item["rank"], item["title"], round(item["score"], 2))
