"""Fine-tuning throughput on one CPU thread: our trainer's step against litgpt's LoRA and Hugging Face's peft.

    ./scripts/bench finetune [--rounds 10]

One small Gemma-2 with the same sizes and the same LoRA (r 16, on query, key, value and projection) in all three,
float32, the same random samples. A step is forward, backward, clipping where the peer clips, and AdamW. The three take
turns in every round, and what is reported is the median of the ratios within a round, so a busy
machine slows all of them.
litgpt's step is what ``litgpt.finetune.lora.fit`` does, peft's what transformers' ``Trainer`` does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "n_layer": 4,
    "n_embd": 256,
    "n_head": 4,
    "n_query_groups": 2,
    "head_size": 64,
    "intermediate_size": 1024,
    "sliding_window_size": 128,
}
VOCABULARY, BATCH, TOKENS = 16_384, 4, 256
R, ALPHA, DROPOUT = 16, 32, 0.05
Step = Callable[[torch.Tensor], None]


def ours() -> Step:
    """What ``bafogpt.train.step`` does in one process without gradient accumulation."""
    from bafogpt.model import lora
    from bafogpt.model.adapter import AdapterConfig
    from bafogpt.model.config import gpt_config
    from bafogpt.model.gpt import new_gpt

    config = gpt_config("Gemma-2-2b", SIZES, VOCABULARY)
    model = new_gpt(config, tie_embeddings=True, seed=1)
    lora.add(model, config, AdapterConfig(r=R, alpha=ALPHA, dropout=DROPOUT, base="as-is"), seed=1)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)

    def step(tokens: torch.Tensor) -> None:
        ids, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
        (model(ids, targets) / targets.numel()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def litgpt() -> Step:
    """``litgpt finetune_lora``: its model, its chunked head and loss."""
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.utils import chunked_cross_entropy

    attention = {f"lora_{name}": True for name in ("query", "key", "value", "projection")}
    sizes = {**SIZES, "vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY}
    indices = [1 - i % 2 for i in range(SIZES["n_layer"])]
    config = Config.from_name(
        "Gemma-2-2b",
        **sizes,
        sliding_window_indices=indices,
        lora_r=R,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        **attention,
    )
    model = GPT(config)
    mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-4)

    def step(tokens: torch.Tensor) -> None:
        logits = model(tokens, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        chunked_cross_entropy(logits, tokens[..., 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peft() -> Step:
    """Hugging Face's peft on transformers' Gemma-2, with the attention that has soft-caps."""
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma2Config, Gemma2ForCausalLM

    base = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=SIZES["n_embd"],
            intermediate_size=SIZES["intermediate_size"],
            num_hidden_layers=SIZES["n_layer"],
            num_attention_heads=SIZES["n_head"],
            num_key_value_heads=SIZES["n_query_groups"],
            head_dim=SIZES["head_size"],
            sliding_window=SIZES["sliding_window_size"],
            attn_implementation="eager",
            use_cache=False,
        )
    )
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)

    def step(tokens: torch.Tensor) -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Print a table: the median tokens a second of each, and ours as a multiple."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=10)
    rounds = options.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    makers = {"bafogpt": ours, "litgpt finetune lora": litgpt, "Hugging Face peft": peft}
    steps = {name: make() for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        tokens = torch.randint(VOCABULARY, (BATCH, TOKENS + 1), generator=generator)
        for name, step in steps.items():
            began = time.process_time()
            step(tokens)
            if number:  # the first warms up
                seconds[name].append(time.process_time() - began)
    print(f"| {rounds} rounds, {BATCH}x{TOKENS} tokens, CPU seconds | tokens/s | ours is |\n|---|---:|---:|")
    for name, taken in seconds.items():
        speed = BATCH * TOKENS / statistics.median(taken)
        ratios = [theirs / mine for mine, theirs in zip(seconds["bafogpt"], taken, strict=True)]
        print(f"| {name} | {speed:,.0f} | {statistics.median(ratios):.2f} x |")


if __name__ == "__main__":
    main()
