"""The tiny Llama of the invented film world and its word-level tokenizer, before any training."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allmrec_hf.data.synthetic import vocabulary

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
HIDDEN_SIZE = 112
HEAD_DIM = 48
NUM_HEADS = 4
ROPE_THETA = 1e9
# How alike words of the same topic start, against what tells them apart (0.15 per dimension).
KINSHIP = 0.8
# With this rope_theta, dimension pairs from here on turn by less than half a radian over 200 tokens.
FIRST_STEADY_PAIR = 7


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word and sign; `<bos>` is added in front.

    White space separates and leaves no trace, every sign stands alone: a text cut anywhere between words gives the
    same tokens as the whole.
    """
    words = [*SPECIAL_TOKENS, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True),
        ]
    )
    # Words are joined by spaces; none stand before a comma or full stop, nor inside quotes.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r'(?<=") (?=[A-Z])'), ""),
            decoders.Replace(Regex(r' (?="(?:[^A-Za-z]|$| [a-z]))'), ""),
            decoders.Replace(Regex(r" (?=[,.])"), ""),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", words.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_language_model(
    tokenizer: PreTrainedTokenizerFast, text_encoder: SentenceTransformer, seed: int
) -> LlamaForCausalLM:
    """Return the untrained model: random weights, apart from word vectors and attention patterns set by `_wire`.

    Args:
        tokenizer: The world's tokenizer.
        text_encoder: Knows which words stand in the same texts of the world.
        seed: Draws the random weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 0.1, generator=generator)
        _wire(model, tokenizer, _kinship(tokenizer, text_encoder, generator))
    return model


def _wire(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, kinship: Tensor) -> None:
    """Set attention patterns that any language model learns early, so that minutes of training are enough.

    The residual stream starts as four rooms: the token itself (48), a note about the token before (32), and notes
    about the tokens three and four back (16 each). In the first room words of the same texts start alike, and two
    dimensions are flags: 47 a word of a title, 46 inside the list of candidates. Layer 0: heads 0, 2 and 3 look 1, 3
    and 4 tokens back; head 1 lets the word "previous" sum up the title words in front of it, the last ones most.
    Layer 1: heads 0 and 1 fetch the notes of `<bos>` and of "previous"; head 2 tells candidates from watched titles.
    Layer 2: heads 0 and 1 look for tokens that resemble what was fetched, and say the word noted there. Everything
    stays trainable.
    """
    token, before, third, fourth = slice(0, 48), slice(48, 80), slice(80, 96), slice(96, 112)
    layers = [layer.self_attn for layer in model.model.layers]
    embedding = model.model.embed_tokens.weight
    embedding[:, token] *= 1.5
    embedding[:, 48:] *= 0.2
    embedding[:, 46:48] = 0.0
    embedding[:, :32] += KINSHIP * kinship
    embedding[_title_words(tokenizer), 47] += 0.3
    for attention in layers:
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.bias.zero_()
    bos, summary, watched, listed = (
        embedding[tokenizer.convert_tokens_to_ids(word), token] for word in ("<bos>", "previous", "watched", "set")
    )
    steady = _steady_dims()[:32]
    for head, room in ((0, before), (2, third), (3, fourth)):
        _look_back(layers[0], _rows(head), head + 1)
        offset = 16 * (head == 3)  # what is noted about the two words: different halves of their embeddings
        width = room.stop - room.start
        _copy(layers[0], _rows(head), slice(offset, offset + width), room, 0.12 if head == 0 else 0.2)
    layers[0].q_proj.weight[steady[:8] + HEAD_DIM, token] += 0.35 * _direction(summary)
    layers[0].k_proj.weight[steady[:8] + HEAD_DIM, 47] += 0.35
    _copy(layers[0], _rows(1), slice(0, 32), before, 0.2)
    _prefer(layers[0], _rows(1), 5, [2, 3, 4], 4.0)
    for head, key, strength in ((0, bos, 0.4), (1, summary, 0.3)):
        layers[1].q_proj.bias[steady + head * HEAD_DIM] = 3.0
        layers[1].k_proj.weight[steady + head * HEAD_DIM, token] += 0.6 * _direction(key)
        _copy(layers[1], _rows(head), before, before, strength)
    _prefer(layers[1], _rows(2), 0, [4, 5], 4.0)
    layers[1].q_proj.bias[steady + 2 * HEAD_DIM] = 3.0
    layers[1].k_proj.weight[steady + 2 * HEAD_DIM, token] += 0.6 * _direction(watched + 1.2 * listed)
    layers[1].v_proj.weight[_rows(2)] *= 0.1
    layers[1].v_proj.weight[2 * HEAD_DIM, token] += _direction(listed - watched)
    layers[1].o_proj.weight[:, _rows(2)] *= 0.1
    layers[1].o_proj.weight[46, 2 * HEAD_DIM] += 0.1
    recency = torch.tensor([3, 4, 5])
    layers[1].q_proj.bias[recency] = 3.0
    layers[1].k_proj.bias[recency] = 3.0
    for head, room in ((0, third), (1, fourth)):
        rows = steady + head * HEAD_DIM
        layers[2].q_proj.weight[rows, before] = 2.0 * torch.eye(32)
        layers[2].k_proj.weight[rows, :32] = 2.0 * torch.eye(32)
        layers[2].q_proj.bias[5 + head * HEAD_DIM] = 5.0
        layers[2].k_proj.weight[5 + head * HEAD_DIM, 46] += 2.0
        _copy(layers[2], _rows(head), room, slice(16 * head, 16 * head + 16), 0.3)


def _title_words(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    plain = {"This", "Recommend", "The"}
    words = tokenizer.get_vocab()
    return torch.tensor(sorted(i for word, i in words.items() if word[0].isupper() and word not in plain))


def _direction(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _rows(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


def _copy(attention: torch.nn.Module, rows: slice, source: slice, target: slice, strength: float) -> None:
    """Let a head copy one room of the residual stream into another."""
    width = source.stop - source.start
    rows = slice(rows.start, rows.start + width)
    attention.v_proj.weight[rows] *= 0.1
    attention.v_proj.weight[rows, source] += torch.eye(width)
    attention.o_proj.weight[:, rows] *= 0.1
    attention.o_proj.weight[target, rows] += strength * torch.eye(width)


def _steady_dims() -> Tensor:
    half = HEAD_DIM // 2
    pairs = torch.arange(FIRST_STEADY_PAIR, half)
    return torch.cat([pairs, pairs + half])


def _look_back(attention: torch.nn.Module, rows: slice, distance: int) -> None:
    """Let a head look at the token at a distance, whatever it is."""
    _prefer(attention, rows, distance, list(range(HEAD_DIM // 2)), 7.0)
    attention.q_proj.weight[rows] *= 0.1
    attention.k_proj.weight[rows] *= 0.1


def _prefer(attention: torch.nn.Module, rows: slice, distance: int, pairs: list[int], strength: float) -> None:
    """Let a head prefer tokens about so far back; dimension pairs that turn more slowly prefer more softly."""
    half = HEAD_DIM // 2
    chosen = torch.zeros(half)
    chosen[pairs] = strength
    turn = distance * ROPE_THETA ** (-torch.arange(half) / half)
    attention.q_proj.bias[rows] = torch.cat([chosen, torch.zeros(half)])
    attention.k_proj.bias[rows] = torch.cat([chosen * turn.cos(), chosen * turn.sin()])


def _kinship(
    tokenizer: PreTrainedTokenizerFast, text_encoder: SentenceTransformer, generator: torch.Generator
) -> Tensor:
    """Return `(vocabulary, 32)` vectors, of length 1 at most, that are alike for words of the same texts."""
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kin = torch.zeros(len(words), 32)
    rows = _title_words(tokenizer)
    kin[rows] = torch.from_numpy(text_encoder.encode([words[row].lower() for row in rows]))[:, :32]
    norms = kin.norm(dim=-1, keepdim=True)
    rotation, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator))
    return kin / norms.clamp(min=norms[rows].median()) @ rotation
