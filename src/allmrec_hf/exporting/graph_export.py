"""Write the graphs of a checkpoint, the tables and texts that they need, and check each graph on real users."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..catalog import ItemCatalog
from ..cf_user_vectors import UserVectorEncoder
from ..errors import ALLMRecError
from ..histories import pad_histories
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor, left_padded
from ..prompt import NO_SLOT
from ..ranker_retrieval import RetrievalRanker
from .export_users import ExportUser
from .graph_example import write_example
from .graph_parts import BackboneGraph, NewItemGraph, RetrievalItemGraph, TextEncoderGraph
from .graph_runtimes import RUNTIMES, GraphRuntime, Run
from .item_vectors import RankedUsers, ranked_users
from .rank_parity import TOP_K, best_items, rank_parity

ITEMS_FILE = "items.json"
TABLES_FILE = "item_tables.safetensors"
TOKENIZER_FILE = "text_tokenizer.json"
AT_ONCE = 64  # rows of a batch
MOST_TEXTS = 1000  # items whose texts are encoded for the gate
MOST_PROMPTS = 200  # items that the LLM reads for the gate
EXAMPLE = {"batch": 3, "tokens": 5}


def write_graphs(
    folder: Path,
    format: str,
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    users: Sequence[ExportUser],
    names: Sequence[str],
    with_text: bool = True,
) -> list[dict[str, Any]]:
    """Write the graphs of a checkpoint, item tables, ids and an example, and return their parts of the record.

    Args:
        folder: Where to write.
        format: `onnx` or `openvino`.
        model: The model; it is moved to the CPU.
        processor: Its processor.
        users: Real users.
        names: Rankers: `cf` stands for the backbone and the path of new items, `retrieval` for the ranker's items.
        with_text: Whether to write the text encoder and the path of new items.
    """
    runtime = RUNTIMES[format]
    histories = [user.history for user in users]
    tables: dict[str, Tensor] = {}
    parts = []
    model.cpu()
    if "cf" in names:
        compared = ranked_users("cf", model, processor, histories)
        parts.append(_backbone(runtime, folder, model, compared))
        tables["cf_item_embeddings"] = model.cf_encoder.item_embeddings
        if with_text:
            parts += _new_items(runtime, folder, model, processor, compared)
    if "retrieval" in names:
        parts.append(_retrieval(runtime, folder, ranked_users("retrieval", model, processor, histories)))
        tables["retrieval_item_vectors"] = model.retrieval_head.item_vectors  # type: ignore[union-attr]
    every = torch.arange(model.cf_encoder.num_items + 1)
    tables["joint_embeddings"] = model._item_vectors(every)
    save_file({name: table.detach().float().contiguous() for name, table in tables.items()}, folder / TABLES_FILE)
    _write_items(folder, processor.catalog)
    write_example(folder, format)
    return parts


def _write_items(folder: Path, catalog: ItemCatalog) -> None:
    rows = [[item_id, catalog.title(row)] for row, item_id in enumerate(catalog.item_ids, 1)]
    (folder / ITEMS_FILE).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _in_batches(run: Run, inputs: dict[str, np.ndarray], output: str) -> Tensor:
    """Return one output of a graph over many rows."""
    count = len(next(iter(inputs.values())))
    parts = [
        run({name: np.ascontiguousarray(value[start : start + AT_ONCE]) for name, value in inputs.items()})[output]
        for start in range(0, count, AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(parts))


def _backbone(runtime: GraphRuntime, folder: Path, model: ALLMRecModel, users: RankedUsers) -> dict[str, Any]:
    encoder = model.cf_encoder
    if isinstance(encoder, UserVectorEncoder):
        raise ALLMRecError(
            f"the backbone {type(encoder).__name__} makes a user's vector by solving for it (fold-in), which is no "
            f"graph of {runtime.format}; export its item vectors (--format faiss, usearch or pgvector where it scores "
            "by dot product) and make users' vectors with this package"
        )
    length = encoder.config.max_history_length
    example = torch.zeros(EXAMPLE["batch"], length, dtype=torch.long)
    example[:, -1] = 1
    part = runtime.write(BackboneGraph(encoder), {"item_ids": example}, {"item_ids": {0: "batch"}}, folder / "backbone")
    run = runtime.open(folder / part["file"])
    item_ids = pad_histories(users.users.histories, length)[0]
    padded = np.zeros((len(item_ids), length), dtype=np.int64)
    padded[:, length - item_ids.shape[1] :] = item_ids.numpy()
    found = []
    for start in range(0, len(padded), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        scores = torch.from_numpy(run({"item_ids": padded[rows]})["scores"])
        found.append(best_items(scores, users.users.seen_ids[rows].cpu()))
    gate = users.parity(torch.cat(found)).require(f"the graph backbone in {runtime.format}")
    return {**part, "max_history_length": length, "gate": gate}


def _sample(count: int, most: int) -> list[int]:
    """Return catalogue indices, spread evenly over the catalogue."""
    return sorted({int(place) for place in np.linspace(1, count, min(count, most)).round()})


def _new_items(
    runtime: GraphRuntime, folder: Path, model: ALLMRecModel, processor: ALLMRecProcessor, users: RankedUsers
) -> list[dict[str, Any]]:
    """Write the text encoder and the aligner's path, and check them: what would items be that had no interaction?"""
    encoder = model.text_encoder.to("cpu").float().eval()
    catalog = processor.catalog
    items = [item for item in _sample(len(catalog), MOST_TEXTS) if catalog.text(item)]  # no text is no graph's affair
    tokens = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "tokens"}}
    ones = torch.ones(EXAMPLE["batch"], EXAMPLE["tokens"], dtype=torch.long)
    text = runtime.write(
        TextEncoderGraph(encoder), {"input_ids": ones, "attention_mask": ones}, tokens, folder / "text_encoder"
    )
    new = runtime.write(
        NewItemGraph(model),
        {"text_embedding": torch.rand(EXAMPLE["batch"], model.config.text_dim)},
        {"text_embedding": {0: "batch"}},
        folder / "new_item",
    )
    prompt = encoder.prompts.get(encoder.default_prompt_name) if encoder.default_prompt_name else None
    texts = [(prompt or "") + catalog.text(item) for item in items]
    tokenizer = _save_tokenizer(encoder, folder / TOKENIZER_FILE)
    read, project = runtime.open(folder / text["file"]), runtime.open(folder / new["file"])
    embeddings = []
    for start in range(0, len(texts), AT_ONCE):
        encoded = tokenizer.encode_batch(texts[start : start + AT_ONCE], add_special_tokens=_special(encoder))
        width = max(1, *(len(one.ids) for one in encoded))
        rows = np.zeros((2, len(encoded), width), dtype=np.int64)
        for row, one in enumerate(encoded):
            rows[:, row, : len(one.ids)] = one.ids, [1] * len(one.ids)
        embeddings.append(read({"input_ids": rows[0], "attention_mask": rows[1]})["text_embedding"])
    theirs = torch.from_numpy(project({"text_embedding": np.concatenate(embeddings)})["item_embedding"])
    ours_text = encoder.encode([catalog.text(item) for item in items], convert_to_tensor=True, show_progress_bar=False)
    ours_text = ours_text.cpu().float()
    decoded = model.aligner.decode_items(model.aligner.encode_texts(ours_text))
    ours = model.cf_encoder.new_items(ours_text, decoded)
    gate = _parity_of_items(users, ours, theirs, model.cf_encoder.score_vectors).require(
        f"the graphs text_encoder and new_item in {runtime.format}"
    )
    checked = {"gate": gate, "gate_items": len(items)}
    words = {"tokenizer": TOKENIZER_FILE, "prompt": prompt or "", "add_special_tokens": _special(encoder)}
    return [{**text, **words, **checked}, {**new, **checked}]


def _parity_of_items(users: RankedUsers, ours: Tensor, theirs: Tensor, score: Any) -> Any:
    """Compare the best of some items, by their vectors `(C, d)` of this package and of a graph.

    Args:
        users: The users.
        ours: Our vectors.
        theirs: Those of the graph.
        score: Scores vectors `(B, 1, d)` and `(B, C, d)` or `(1, C, d)`, giving `(B, C)`.
    """
    vectors = users.vectors.unsqueeze(1)
    lists = []
    for table in (ours, theirs):
        parts = [score(part, table.unsqueeze(0)) for part in vectors.split(AT_ONCE)]
        scores = torch.cat([torch.cat([part.new_zeros(len(part), 1), part], dim=1) for part in parts])
        lists.append(best_items(scores, torch.zeros(len(scores), 1, dtype=torch.long), min(TOP_K, len(table))))
    padded = torch.cat([ours.new_zeros(1, ours.shape[1]), ours])
    return rank_parity(
        lists[0], lists[1], lambda items: score(vectors, padded[items]).masked_fill(items == 0, float("-inf"))
    )


def _special(encoder: Any) -> bool:
    """Tell whether a text encoder's tokens include special ones; static embeddings have none."""
    return not TextEncoderGraph(encoder).is_static


def _save_tokenizer(encoder: Any, path: Path) -> Any:
    """Write the tokenizer of a text encoder as `tokenizers` reads it, and return it as read from the file.

    Raises:
        ALLMRecError: when it is no fast tokenizer.
    """
    from tokenizers import Tokenizer

    found = encoder[0].tokenizer
    found = getattr(found, "backend_tokenizer", found)
    if not isinstance(found, Tokenizer):
        raise ALLMRecError(
            f"the text encoder's tokenizer ({type(found).__name__}) is none of the library tokenizers, which programs "
            "without transformers need; leave the path of new items out by --no-text-encoder"
        )
    copied = Tokenizer.from_str(found.to_str())
    copied.no_padding()
    longest = getattr(encoder, "max_seq_length", None)
    if longest is not None and np.isfinite(longest):
        copied.enable_truncation(int(longest))
    else:
        copied.no_truncation()
    copied.save(str(path))
    return Tokenizer.from_file(str(path))


def _retrieval(runtime: GraphRuntime, folder: Path, users: RankedUsers) -> dict[str, Any]:
    """Write the item side of the ranker `retrieval`, and check the vectors that it makes of some items."""
    ranker: Any = users.ranker
    items = _sample(ranker.model.cf_encoder.num_items, MOST_PROMPTS)
    table = ranker.item_table()
    lengths = {"batch": EXAMPLE["batch"], "tokens": EXAMPLE["tokens"]}
    ones = torch.ones(lengths["batch"], lengths["tokens"], dtype=torch.long)
    places = torch.zeros_like(ones)
    places[:, -1] = 1
    tokens = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask", "vector_mask")}
    example = {"input_ids": ones, "attention_mask": ones.clone(), "vector_mask": places}
    part = runtime.write(
        RetrievalItemGraph(ranker),
        {**example, "joint_embedding": torch.rand(lengths["batch"], ranker.model.config.joint_dim)},
        {**tokens, "joint_embedding": {0: "batch"}},
        folder / "retrieval_item",
    )
    run, found = runtime.open(folder / part["file"]), []
    for start in range(0, len(items), AT_ONCE):
        found.append(run(item_inputs(ranker, items[start : start + AT_ONCE]))["item_vector"])
    parity = _parity_of_items(
        users, table[torch.tensor(items)].float(), torch.from_numpy(np.concatenate(found)), _dot_products
    )
    gate = parity.require(f"the graph retrieval_item in {runtime.format}")
    return {**part, "prompt": ranker.template.item, "gate": gate, "gate_items": len(items)}


def _dot_products(users: Tensor, items: Tensor) -> Tensor:
    return (users * items).sum(dim=-1)


def item_inputs(ranker: RetrievalRanker, items: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the inputs of the graph `retrieval_item` for items of the catalogue.

    Args:
        ranker: The ranker, whose processor has their titles.
        items: Catalogue indices.
    """
    prompts = [ranker.item_prompt(item) for item in items]
    rows = left_padded([(prompt.tokens, prompt.slots) for prompt in prompts])
    joint = ranker.model.item_vectors(torch.tensor(list(items), device=ranker.model.device))
    return {
        "input_ids": rows["input_ids"].numpy(),
        "attention_mask": rows["attention_mask"].long().numpy(),
        "vector_mask": (rows["slot_ids"] != NO_SLOT).long().numpy(),
        "joint_embedding": joint.detach().cpu().float().numpy(),
    }
