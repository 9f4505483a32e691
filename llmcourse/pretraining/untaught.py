"""What the training text never taught: instructions, tool calls, a helpful manner. A base model should be poor at them.

    <|user|>question<|end|><|assistant|> ─► greedy reply ─► judged by the task's own check

Later lessons teach these by tuning; measured here first, so that the gain is theirs.

Does:     the share of right replies for each, greedy decoding, held-out wordings.
Leaves out: partly right replies; prompts without the chat form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from llmcourse.world import Draw, World, instructions, preferences, tools

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["UNTAUGHT", "replies"]

Judged = list[tuple[str, Callable[[str], bool]]]
POLITE = 0.6  # what one polite phrase and no rude one is worth to the true reward


def _instructions(world: World, asked: int) -> Judged:
    examples = [instructions.example(world, i, "test") for i in range(asked)]
    return [(example.prompt, lambda reply, example=example: instructions.right(example, reply)) for example in examples]


def _tool_calls(world: World, asked: int) -> Judged:
    tasks = [tools.task(world, i, "test") for i in range(asked)]
    return [(task.question, lambda reply, task=task: tools.right_call(task.steps[0], reply)) for task in tasks]


def _manner(world: World, asked: int) -> Judged:
    """Right and polite: the true value, and at least one polite phrase."""
    reward = preferences.TrueReward(world)
    questions = [preferences.asked(world, Draw(f"manner/{i}"), "test").question for i in range(asked)]

    def fine(question: str, reply: str) -> bool:
        parts = reward.parts(question, reply)
        return parts["helpful"] > 0 and parts["manner"] >= POLITE

    return [(question, lambda reply, question=question: fine(question, reply)) for question in questions]


UNTAUGHT: dict[str, Callable[[World, int], Judged]] = {
    "unseen instructions": _instructions,
    "tool calls": _tool_calls,
    "right and in a helpful manner": _manner,
}


@torch.no_grad()
def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int = 40,
    batch_size: int = 50,
) -> list[str]:
    """Greedy replies to prompts in the chat form, each up to the end of the assistant's turn."""
    stop = [tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id]
    written = []
    for start in range(0, len(prompts), batch_size):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch_size]]
        asked = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        asked = {name: asked[name].to(model.device) for name in ("input_ids", "attention_mask")}
        rows = model.generate(
            **asked, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id
        )
        written += tokenizer.batch_decode(rows[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in written]
