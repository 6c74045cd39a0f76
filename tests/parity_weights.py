"""Weight names of the parity data in the words of this package."""

import torch


def sasrec_weights(numbers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict of `SASRecModel` for the weights in `sasrec.safetensors`."""
    weights = {
        "item_embedding.weight": numbers["weight.item_emb.weight"],
        "position_embedding.weight": numbers["weight.pos_emb.weight"],
    }
    for kind in ("weight", "bias"):
        weights[f"final_norm.{kind}"] = numbers[f"weight.last_layernorm.{kind}"]
        for layer in range(2):
            ours = f"layers.{layer}"
            weights[f"{ours}.attention_norm.{kind}"] = numbers[f"weight.attention_layernorms.{layer}.{kind}"]
            weights[f"{ours}.feed_forward_norm.{kind}"] = numbers[f"weight.forward_layernorms.{layer}.{kind}"]
            packed = numbers[f"weight.attention_layers.{layer}.in_proj_{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), packed, strict=True):
                weights[f"{ours}.attention.{name}.{kind}"] = part
            weights[f"{ours}.attention.output.{kind}"] = numbers[f"weight.attention_layers.{layer}.out_proj.{kind}"]
            for name, conv in (("feed_forward_inner", "conv1"), ("feed_forward_outer", "conv2")):
                weights[f"{ours}.{name}.{kind}"] = numbers[f"weight.forward_layers.{layer}.{conv}.{kind}"].squeeze(-1)
    return {name: value.contiguous() for name, value in weights.items()}
