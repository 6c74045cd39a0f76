"""Three ways through the LLM for each part: ours, the naive one (the plainest correct form), and the bare floor.

All take the same weights; `returned` values of ours and naive are compared by the caller. Naive attends eagerly, pads
a batch, computes every logit and puts every candidate behind a prompt of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from allmrec_hf import ALLMRecModel, ALLMRecProcessor
from allmrec_hf.aligner import ItemTextAligner
from allmrec_hf.cf_encoder import build_cf_encoder
from allmrec_hf.cf_sasrec import SASRecConfig
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.losses import alignment_losses
from allmrec_hf.prompt import NO_SLOT, USER_SLOT
from allmrec_hf.ranker import TitleLikelihood, UserBatch
from allmrec_hf.scoring import packed_answers
from allmrec_hf.training.alignment import AlignmentModule
from allmrec_hf.training.projection import ProjectionModule, ProjectionTask
from allmrec_hf.training.stage_arguments import StageArguments

Lists = Sequence[Sequence[int]]
Way = Callable[[], Any]


def _eager(llm: Any) -> Callable[[], None]:
    """Let an LLM attend eagerly, and return what sets it back."""
    before = llm.config._attn_implementation
    llm.set_attn_implementation("eager")
    return lambda: llm.set_attn_implementation(before)


def _naive_prompt(model: ALLMRecModel, tokens: torch.Tensor, slots: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
    """Return the embedded prompt `(T, d_llm)` of one user, slot by slot."""
    rows = []
    for token, slot in zip(tokens.tolist(), slots.tolist(), strict=True):
        if slot == NO_SLOT:
            rows.append(model.language_model.get_input_embeddings()(torch.tensor(token)))
        elif slot == USER_SLOT:
            rows.append(model.user_projector(user))
        else:
            rows.append(model.item_projector(model.item_vectors(torch.tensor([slot])))[0])
    return torch.stack([row.to(model.language_model.dtype).reshape(-1) for row in rows])


def stage2_ways(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    data: PreparedData,
    histories: Lists,
    candidates: Lists,
    targets: Sequence[int],
) -> dict[str, Way]:
    """Return the ways of one step of stage 2: batch, forward and backward; each returns the loss."""
    module, llm = ProjectionModule(model), model.language_model
    task = ProjectionTask(module, processor, data, "train", len(candidates[0]), StageArguments())
    module.train()

    def ours() -> float:
        module.zero_grad()
        batch = dict(processor.training_batch(histories, candidates, targets))
        whole, total = task.loss_weight(batch), 0.0
        for part in task.parts(batch):  # as the training loop takes them
            loss = module(part)["loss"] * (task.loss_weight(part) / whole)
            loss.backward()
            total += loss.item()
        return total

    def naive() -> float:
        module.zero_grad()
        back = _eager(llm)
        batch = processor.training_batch(histories, candidates, targets)
        users = model.encode_users(batch["history_ids"], batch["history_mask"])
        embeds = torch.stack(
            [
                _naive_prompt(model, tokens, slots, user)
                for tokens, slots, user in zip(batch["input_ids"], batch["slot_ids"], users, strict=True)
            ]
        )
        mask = batch["attention_mask"].long()
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = llm(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False).logits
        wanted = batch["labels"][:, 1:].flatten()
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=-100)
        loss.backward()
        back()
        return loss.item()

    batch = processor.training_batch(histories, candidates, targets)
    with torch.no_grad():
        embedded = model.embed_prompts(
            batch["input_ids"], batch["slot_ids"], batch["history_ids"], batch["history_mask"]
        )
    rows = []
    for embeds, mask, labels in zip(embedded, batch["attention_mask"].bool(), batch["labels"], strict=True):
        rows.append((embeds[mask].unsqueeze(0), labels[labels != -100]))
    total = sum(len(labels) for _, labels in rows)

    def floor() -> float:
        whole = 0.0
        for embeds, labels in rows:
            leaf = embeds.detach().requires_grad_(True)
            logits = llm(inputs_embeds=leaf, use_cache=False, logits_to_keep=len(labels) + 1).logits[0, :-1]
            loss = F.cross_entropy(logits.float(), labels, reduction="sum") / total
            loss.backward()
            whole += loss.item()
        return whole

    padded = embedded.detach(), batch["attention_mask"].long()
    keep = int((batch["labels"] != -100).sum(dim=1).max()) + 1

    def floor_padded() -> float:
        leaf = padded[0].clone().requires_grad_(True)
        places = (padded[1].cumsum(dim=1) - 1).clamp(min=0)
        logits = llm(
            inputs_embeds=leaf, attention_mask=padded[1], position_ids=places, use_cache=False, logits_to_keep=keep
        ).logits[:, :-1]
        wanted = batch["labels"][:, 1 - keep :].flatten()
        loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted, ignore_index=-100)
        loss.backward()
        return loss.item()

    return {"ours": ours, "naive": naive, "floor": floor, "floor, padded": floor_padded}


def recommend_ways(
    model: ALLMRecModel, processor: ALLMRecProcessor, histories: Lists, candidates: Lists, naive: bool = True
) -> tuple[dict[str, Way], dict[str, int]]:
    """Return the ways of scoring candidates, and the tokens of prompts and of answers.

    Ours and naive return the scores; the floor is the bare prefill of the prompts.
    """
    llm, ranker = model.language_model, TitleLikelihood(model, processor)

    @torch.no_grad()
    def ours() -> torch.Tensor:
        users = UserBatch.encode(model, processor, histories)
        return ranker.score(users, candidates).parts["likelihood"]

    @torch.no_grad()
    def plain() -> torch.Tensor:
        back = _eager(llm)
        batch = processor(histories, candidates)
        users = model.encode_users(batch["history_ids"], batch["history_mask"])
        scores = torch.zeros(batch["candidate_ids"].shape)
        for row, user in enumerate(users):
            real = batch["attention_mask"][row].bool()
            for column in range(scores.shape[1]):
                prompt = _naive_prompt(model, batch["input_ids"][row][real], batch["slot_ids"][row][real], user)
                answer = batch["answer_ids"][row, column][batch["answer_mask"][row, column]]
                embeds = torch.cat([prompt, llm.get_input_embeddings()(answer).to(prompt.dtype)]).unsqueeze(0)
                logits = llm(inputs_embeds=embeds, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
                scores[row, column] = logits.log_softmax(dim=-1).gather(1, answer[:, None]).sum()
        back()
        return scores

    batch = processor(histories, candidates)
    with torch.no_grad():
        embedded = model.embed_prompts(
            batch["input_ids"], batch["slot_ids"], batch["history_ids"], batch["history_mask"]
        )
    rows = [embeds[mask].unsqueeze(0) for embeds, mask in zip(embedded, batch["attention_mask"].bool(), strict=True)]

    @torch.no_grad()
    def floor() -> None:
        for embeds in rows:
            llm(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)

    mask = batch["attention_mask"].long()

    @torch.no_grad()
    def floor_padded() -> None:
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        llm(inputs_embeds=embedded, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1)

    ways: dict[str, Way] = {"ours": ours, "floor": floor, "floor, padded": floor_padded}
    if naive:
        ways["naive"] = plain
    counts = {"prompt_tokens": int(batch["attention_mask"].sum()), "answer_tokens": int(batch["answer_mask"].sum())}
    counts["answer_tokens_read"] = sum(
        packed_answers(batch["answer_ids"][user : user + 1], batch["answer_mask"][user : user + 1])
        for user in range(len(histories))
    )
    return ways, counts


def stage1_ways(
    encoder: Any, texts: Sequence[str], num_items: int, batch_size: int
) -> tuple[dict[str, Way], dict[str, Any]]:
    """Return the ways of one step of stage 1, dropout off so that the losses are equal, and what a step holds."""
    torch.manual_seed(2)
    cf = build_cf_encoder(SASRecConfig(num_items=num_items, hidden_size=64)).eval()
    width = encoder.get_embedding_dimension()
    aligner = ItemTextAligner(64, width, 64)
    exact = AlignmentModule(cf, aligner, texts, encoder, True, 0.5, 0.5).eval()
    frozen = AlignmentModule(cf, aligner, texts, encoder, False, 0.5, 0.5).eval()
    items = torch.randint(1, num_items + 1, (batch_size, 20))
    popular = (torch.rand(2, batch_size) ** 3 * num_items).long() + 1  # as items are drawn: some often
    batch = {"item_ids": items, "attention_mask": torch.ones_like(items).bool()}
    for name, drawn in zip(("targets", "negatives"), popular, strict=True):
        batch[name] = torch.zeros_like(items)
        batch[name][:, -1] = drawn
    encoder.requires_grad_(True)

    def step(module: AlignmentModule) -> float:
        module.zero_grad()
        loss = module(batch)["loss"]
        loss.backward()
        return loss.item()

    def naive() -> float:
        exact.zero_grad()
        positive, negative = popular
        embedded = []
        for side in (positive, negative):  # every text, as often as it occurs, in the order of the batch
            features = encoder.preprocess([texts[index - 1] for index in side.tolist()])
            embedded.append(encoder(features)["sentence_embedding"])
        users = cf.encode_users(items, batch["attention_mask"]).detach()
        sides = [(cf.item_embeddings[rows], found) for rows, found in zip(popular, embedded, strict=True)]
        outputs = [aligner(*side) for side in sides]
        loss = alignment_losses(users, *outputs, *sides, score=cf.score_vectors, alpha=0.5, beta=0.5)["loss"]
        loss.backward()
        return loss.item()

    unique = sorted({texts[index - 1] for index in popular.flatten().tolist()}, key=len)

    def floor() -> None:
        for start in range(0, len(unique), 8):  # nearly no padding
            encoder(encoder.preprocess(unique[start : start + 8]))["sentence_embedding"].sum().backward()

    counts = {"texts": 2 * batch_size, "different": len(unique)}
    return {
        "ours": lambda: step(exact),
        "naive": naive,
        "floor": floor,
        "frozen": lambda: step(frozen),
    }, counts
