"""From frames of interactions and items to recommendations, in Python alone.

python examples/train_and_recommend.py --llm facebook/opt-125m --output runs/example
"""

import argparse
from dataclasses import replace
from pathlib import Path

from transformers import AutoModel, pipeline

import allmrec_hf
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.llm_ranker import ALLMRecRanker
from allmrec_hf.evaluation.rankers import CFRanker, PopularityRanker
from allmrec_hf.training.presets import preset
from allmrec_hf.training.stage_arguments import STAGES
from allmrec_hf.training.run import train
from allmrec_hf.training.settings import run_settings

DEMO = Path(allmrec_hf.__file__).parent / "demo"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--llm", default=str(DEMO / "language_model"))
parser.add_argument("--text-encoder", default=str(DEMO / "text_encoder"))
parser.add_argument("--output", type=Path, default=Path("runs/example"))
parser.add_argument("--tiny", action="store_true", help="a few steps on a small world")
options = parser.parse_args()

# 1. Interactions and items: frames of your own have the same columns.
world = SyntheticWorld(num_items=120, num_users=200) if options.tiny else SyntheticWorld()
data = prepare(
    world.interactions(), world.items(), output=options.output / "data", filter="none", name="example", domain="movie"
)

# 2. Three stages: CF encoder, alignment, projection into the frozen LLM.
settings = replace(run_settings("demo"), llm=options.llm, text_encoder=options.text_encoder)
arguments = {stage: preset("demo", stage) for stage in STAGES}
if options.tiny:
    settings = replace(settings, warm_start_steps=5)
    arguments = {stage: replace(value, epochs=1, max_steps=3) for stage, value in arguments.items()}
run = train(data, options.output / "run", settings, arguments=arguments, preset_name="demo")

# 3. The same candidates for every method.
model = AutoModel.from_pretrained(run)
processor = allmrec_hf.ALLMRecProcessor.from_pretrained(run)
rankers = [
    ALLMRecRanker(model, processor),
    CFRanker(AutoModel.from_pretrained(run / "backbone")),
    PopularityRanker(data.item_counts("train")),
]
print(evaluate(rankers, data, max_users=100).to_table())

# 4. Recommendations with titles.
recommend = pipeline("recommendation", model=str(run))
for item in recommend({"history": data.catalog.item_ids[:3]}, top_k=3):
    print(item["rank"], item["title"], round(item["score"], 2))
