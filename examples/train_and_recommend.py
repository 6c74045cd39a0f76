"""From frames of interactions and items to recommendations, in Python alone.

python examples/train_and_recommend.py --llm facebook/opt-125m --output runs/example
"""

import argparse
from pathlib import Path

from allmrec_hf import ALLMRecTrainer, ALLMRecTrainingArguments, SyntheticWorld, prepare

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--llm", default="demo", help="id or folder; by default the tiny one of the package")
parser.add_argument("--text-encoder", default="demo")
parser.add_argument("--output", type=Path, default=Path("runs/example"))
parser.add_argument("--tiny", action="store_true", help="a few steps on a small world")
options = parser.parse_args()

# 1. Interactions and items: frames of your own have the same columns.
world = SyntheticWorld(num_items=120, num_users=200) if options.tiny else SyntheticWorld()
data = prepare(world.interactions(), world.items(), filter="none", name="example", domain="movie")

# 2. Three stages: backbone, alignment, projection into the frozen LLM.
few = {"max_steps": 3, "min_steps": None} if options.tiny else {}
args = ALLMRecTrainingArguments(
    options.output,
    preset="demo",
    backbone=few,
    align=few,
    project={**few, "warm_start_steps": 5} if options.tiny else few,
)
trainer = ALLMRecTrainer(llm=options.llm, backbone="sasrec", text_encoder=options.text_encoder, args=args, data=data)
trainer.train()

# 3. The same candidates for every method.
print(trainer.evaluate(max_users=100).to_table())

# 4. Recommendations with titles.
recommend = trainer.pipeline()
for item in recommend({"history": data.catalog.item_ids[:3]}, top_k=3):
    print(item["rank"], item["title"], round(item["score"], 2))
