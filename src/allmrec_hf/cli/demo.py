"""`allmrec demo`: the whole path, from interactions to the pipeline, on an invented film world or on real parts."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..stored_values import json_value
from .loading import GgufFileOption, TrustOption, load_pipeline, named_llm
from .options import ConfigOption, JsonOption, SeedOption, emit, say, stderr, user_errors

if TYPE_CHECKING:
    from ..data.prepared import PreparedData
    from ..evaluation.evaluator import EvaluationResult
    from ..evaluation.protocol import Ranker
    from ..training.arguments import ALLMRecTrainingArguments

INVENTED = "The films, users and words of this model are invented; it recommends nothing that exists."
MARKER = ".allmrec-demo"  # by which --overwrite knows an earlier demo
FAIR = "sasrec, data of stage 2"
NO_LLM = "same vectors, no LM"
MEANING = (
    "What an invented world and an LM of 0.4 M parameters can show: that collaborative and text knowledge reaches the "
    f"ranking through a frozen LM. What they cannot: that a real LLM adds anything on real data; read a-llmrec against "
    f"'{NO_LLM}' for what this LM adds. One seed: differences under 0.02 mean nothing."
)


def demo(
    output: Annotated[Path, typer.Option(help="Run folder; new or empty.")] = Path("allmrec-demo"),
    llm: Annotated[str | None, typer.Option(help="A real causal LM instead of the tiny one.")] = None,
    gguf_file: GgufFileOption = None,
    text_encoder: Annotated[str | None, typer.Option(help="A real text encoder instead of the tiny one.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of `allmrec prepare` instead of the invented world.")
    ] = None,
    seed: SeedOption = 0,
    max_users: Annotated[int | None, typer.Option(min=1, help="A seeded sample of test users.")] = None,
    trust_remote_code: TrustOption = False,
    overwrite: Annotated[bool, typer.Option(help="Remove an earlier demo in the output folder first.")] = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Run every stage, print the table beside its baselines, and recommend from the saved checkpoint.

    **Examples**

    `allmrec demo`

    `allmrec demo --data data/games --llm facebook/opt-125m --text-encoder sentence-transformers/all-MiniLM-L6-v2`
    """
    with user_errors():
        from ..part_sources import DEMO
        from ..training.llms import check_llm

        started = time.monotonic()
        llm = named_llm(llm, gguf_file)
        check_llm(llm or DEMO, None, {}, trust_remote_code)
        clear(output, overwrite)
        tell = (lambda text: stderr.print(text, markup=False)) if json_output else say
        prepared = _data(data, output, seed, tell)
        train_stages(prepared, _arguments(output, llm, text_encoder, data is None, seed), trust_remote_code, tell)
        result = evaluate_side_by_side(prepared, output, max_users, trust_remote_code, tell)
        _write_card(output, result, invented=data is None, tiny=llm is None)
        tell(f"\n{result.to_table()}\n\n{MEANING if data is None and llm is None else ''}".rstrip())
        recommended = recommend_again(prepared, output, trust_remote_code, tell)
        tell(f"\nThe checkpoint is in {output} ({checkpoint_size(output)}). Took {time.monotonic() - started:.0f} s.")
        if json_output:
            emit({"output": str(output), "evaluation": result.to_dict(), "recommendations": recommended})


def clear(output: Path, overwrite: bool) -> None:
    """Make room for a run in a folder that is new, empty, or holds an earlier demo that may go."""
    from ..errors import ALLMRecError
    from ..files import written_whole

    if output.exists() and not output.is_dir():
        raise ALLMRecError(f"the output {output} is a file; give a folder")
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise ALLMRecError(f"the output folder {output} is not empty; choose another, or pass --overwrite")
        if not (output / MARKER).exists():  # any other run has a run.json too, and is not the demo's to remove
            raise ALLMRecError(f"{output} holds no earlier demo, so --overwrite does not remove it")
        shutil.rmtree(output)
    with written_whole(output / MARKER) as temporary:
        temporary.touch()


def _data(data: Path | None, output: Path, seed: int, tell: Any) -> PreparedData:
    from ..data.prepare import prepare
    from ..data.prepared import PreparedData
    from ..data.synthetic import SyntheticWorld

    if data is not None:
        prepared = PreparedData.load(data)
    else:
        world = SyntheticWorld(seed=seed)
        prepared = prepare(
            world.interactions(),
            world.items(),
            output=output / "data",
            filter="none",
            keep_items="all",
            name="invented films",
            domain="movie",
            source="allmrec_hf.data.synthetic",
            seed=seed,
        )
    counts = prepared.info["counts"]
    tell(
        f"data     {prepared.name}: {counts['users']:,} users, {counts['items']:,} items, "
        f"{counts['interactions']:,} interactions"
    )
    return prepared


def _arguments(
    output: Path, llm: str | None, text_encoder: str | None, invented: bool, seed: int
) -> ALLMRecTrainingArguments:
    from ..part_sources import DEMO
    from ..training.arguments import ALLMRecTrainingArguments

    return ALLMRecTrainingArguments(
        output,
        "demo" if invented and llm is None else "quick",
        align={"text_encoder": text_encoder or DEMO, "fine_tune_text_encoder": text_encoder is None},
        rank="likelihood",  # the paper's three stages
        llm={"name": llm or DEMO, "include_llm": llm is None},
        seed=seed,
    )


def train_stages(data: PreparedData, args: ALLMRecTrainingArguments, trust: bool, tell: Any) -> None:
    """Train every stage that the rankers need, and tell how each went."""
    from ..training.trainer import ALLMRecTrainer

    trainer = ALLMRecTrainer(args=args, data=data, trust_remote_code=trust)
    for stage in args.rank.steps():
        before = time.monotonic()
        trainer.train(stage, resume_from_checkpoint=True)
        tell(f"{stage:<8} {_done(trainer.output_dir, stage)}, {time.monotonic() - before:.0f} s")


def _done(output: Path, stage: str) -> str:
    """Return what a stage did, in words."""
    if stage == "rank":
        ranker = json_value((output / "config.json").read_text(encoding="utf-8"))["ranker"]
        return f"what ranks by default: {ranker}"
    records = [  # several where depths of the LLM were tried
        json_value(path.read_text(encoding="utf-8"))["result"]
        for path in (output / "checkpoints" / stage).glob("**/training.json")
    ]
    record = max(records, key=lambda one: one["best"] or 0.0)
    best = "" if record["best"] is None else f", best {record['metric']} {record['best']:.3f} on validation"
    return f"{record['steps']:,} steps, {record['epochs']} epochs{best}"


def evaluate_side_by_side(
    data: PreparedData,
    output: Path,
    max_users: int | None,
    trust: bool,
    tell: Any,
    batch_size: int = 32,
) -> EvaluationResult:
    """Evaluate every ranker of a run beside its backbone, the LM alone, its vectors without the LM, text, popularity.

    Args:
        data: The prepared data of the run.
        output: The run folder; the report is written there.
        max_users: A seeded sample of test users.
        trust: Run code that comes with the parts.
        tell: Takes lines for the user.
        batch_size: Users that the LM reads at once.
    """
    from transformers import AutoModel

    from ..evaluation.evaluator import evaluate
    from ..evaluation.llm_ranker import ALLMRecRanker, checkpoint_rankers
    from ..evaluation.rankers import BackboneRanker, PopularityRanker, TextCosineRanker
    from ..processing_allmrec import ALLMRecProcessor
    from ..prompt import PromptTemplate
    from ..ranking import ndcg_at_k
    from ..training.alignment import text_embedding_table
    from ..training.fair import fair_backbone

    before = time.monotonic()
    model = AutoModel.from_pretrained(output, trust_remote_code=trust, dtype="auto")
    processor = ALLMRecProcessor.from_pretrained(output, trust_remote_code=trust)
    words_only = ALLMRecProcessor(
        processor.tokenizer,
        PromptTemplate.from_dict(processor.prompt).without_vectors().to_dict(),
        history_in_prompt=processor.history_in_prompt,
        max_length=processor.max_length,
        max_title_characters=processor.max_title_characters,
        max_title_tokens=processor.max_title_tokens,
    )
    words_only.catalog = processor.catalog
    embeddings = text_embedding_table(model.text_encoder, data.catalog.texts()).numpy()
    by_text = [TextCosineRanker(embeddings, last_items=last, name=f"text, last {last}") for last in (1, 3, 10)]
    tried = evaluate(by_text, data, split="validation", max_users=max_users).ranks
    text = max(by_text, key=lambda ranker: float(ndcg_at_k(tried[ranker.name], 10).mean()))
    text.name = "text alone"
    rankers: list[Ranker] = [
        *checkpoint_rankers(model, processor, (), data.candidates("test").items.shape[1], batch_size=batch_size),
        BackboneRanker(AutoModel.from_pretrained(output / "backbone")),
        BackboneRanker(fair_backbone(output, data), name=FAIR),
        ALLMRecRanker(model, words_only, name="LM alone", batch_size=batch_size, ranker="likelihood"),
        BackboneRanker(model.cf_encoder, name=NO_LLM),  # cold items: CF embedding decoded from text
        text,
        PopularityRanker(data.item_counts("train")),
    ]
    result = evaluate(rankers, data, max_users=max_users, full_ranking=True)
    result.write_json(output / "evaluation.json")
    tell(f"evaluate {len(rankers)} methods on the same candidates, {time.monotonic() - before:.0f} s")
    return result


def _write_card(output: Path, result: EvaluationResult, invented: bool, tiny: bool) -> None:
    from ..hub.card import read_card, write_card

    card = read_card(output).of_method(next(iter(result.report["methods"]))).with_report(result.to_dict())
    if invented:
        card.warnings = [INVENTED, *([MEANING] if tiny else [])]
        card.license = "apache-2.0"
        card.language = ["en"]
    write_card(card, output)


def recommend_again(data: PreparedData, output: Path, trust: bool, tell: Any) -> list[dict[str, Any]]:
    """Recommend for two test users from the checkpoint as anyone would load it."""
    from transformers import AutoModel

    from ..prompt import clean_title

    model = AutoModel.from_pretrained(output, trust_remote_code=trust, dtype="auto")
    tell(f"\nLoaded again: AutoModel gives {type(model).__name__}; pipeline('recommendation') recommends")
    pipe = load_pipeline(str(output), trust_remote_code=trust, dtype="auto")
    shown = []
    for user in data.candidates("test").users[:2]:
        history = [data.catalog.item_id(int(index)) for index in data.history(int(user), "test")]
        found = pipe({"history": history}, top_k=5)
        shown.append({"user": data.user_ids[int(user)], "history": history, "recommendations": found})
        titles = [clean_title(data.catalog.title(int(index))) for index in data.history(int(user), "test")[-3:]]
        tell(f"\n  {data.user_ids[int(user)]}, who last had {'; '.join(titles)}:")
        for item in found:
            tell(f"  {item['rank']:>3}  {item['score']:>7.3f}  {clean_title(item['title'])} ({item['item_id']})")
    return shown


def checkpoint_size(output: Path) -> str:
    """Return the size of what a checkpoint holds, in words."""
    from ..hub.publish import checkpoint_files

    total = sum((output / name).stat().st_size for name in checkpoint_files(output))
    return f"{total / 1e6:.1f} MB"
