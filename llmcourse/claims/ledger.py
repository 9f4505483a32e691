# PLACEHOLDER BY THE LEAD (your originals were overwritten by accident). Engineer C: your version wins: write __init__.py and rules.py again, delete ledger.py.
"""The ledger: every number the course's sources claim, with the rule that will judge it.

A rule may be sharpened until the claim is first measured, never after.

Does:     one entry a claim, in our own words: what is said, where it is measured, which numbers decide.
Leaves out: the measurements: they stand in the notebooks, and `llmcourse claims` collects them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .rules import Rule, all_of, at_least, at_most, exactly, positive, within

__all__ = ["LEDGER", "Claim"]


@dataclass(frozen=True)
class Claim:
    """`says`: the claim. `rule`: what decides. `notebooks`: where it is measured. `drift`: how far CI's numbers may move."""

    id: str
    notebooks: tuple[str, ...]
    says: str
    rule: Rule
    drift: float = 0.25


_CLAIMS = (
    Claim(
        "lora-params", ("04",), "A 512×64 weight has 32,768 parameters; LoRA of rank 8 trains 4,608 of them, 86 % fewer.",
        exactly(full=32_768, lora=4_608), drift=0.0,
    ),
    Claim(
        "lora-rank", ("04",), "LoRA's quality saturates: ranks 4 to 32 are enough, past 16 there is little to gain.",
        all_of(within("rank_64_minus_16", 2.0), positive("rank_16_minus_1")),
    ),
    Claim(
        "prompt-params", ("04",), "Five soft tokens at width 2,048 are 10,240 parameters.",
        exactly(parameters=10_240), drift=0.0,
    ),
    Claim(
        "prompt-scale", ("04",), "Prompt tuning trails full fine-tuning on small models, and the gap closes with size.",
        all_of(positive("gap_small"), positive("gap_small_minus_large")),
    ),
    Claim(
        "prompt-neighbours", ("04",), "The nearest vocabulary neighbours of trained soft prompts cluster by meaning.",
        positive("similarity_above_chance"),
    ),
    Claim(
        "prefix-params", ("04",),
        "Prefix tuning trains about 0.1 % of the parameters, comes near full fine-tuning, and is better with little data.",
        all_of(at_most("trainable_percent", 2.0), within("full_data_minus_full_tuning", 2.0), positive("small_data_minus_full_tuning")),
    ),
    Claim(
        "ptuningv2-params", ("04",), "P-tuning v2 trains 0.1 to 3 % of the parameters and matches full fine-tuning.",
        all_of(at_least("trainable_percent", 0.1), at_most("trainable_percent", 3.0), within("minus_full_tuning", 2.0)),
    ),
    Claim(
        "adapter-26", ("04",), "Adapters come near full fine-tuning with a few per cent of the parameters.",
        all_of(at_most("trainable_percent", 5.0), within("minus_full_tuning", 2.0)),
    ),
    Claim(
        "bitfit-small", ("04",), "Training the biases alone competes with full fine-tuning on small data.",
        within("small_data_minus_full_tuning", 2.0),
    ),
    Claim(
        "ia3-fewest", ("04",), "IA3 trains far fewer parameters than LoRA, and beats in-context learning from the same examples.",
        all_of(at_least("lora_over_ia3_parameters", 2.0, scale=False), positive("minus_in_context")),
    ),
    Claim(
        "qlora-par", ("05",), "QLoRA is on a par with LoRA and with full fine-tuning.",
        all_of(within("minus_lora", 2.0), within("minus_full_tuning", 2.0)),
    ),
    Claim(
        "bitnet-bits", ("05",), "Ternary weights carry log2(3) = 1.58 bits; a 3-billion model then takes 3.55 times less memory.",
        all_of(at_least("bits_per_weight", 1.58, scale=False), at_most("bits_per_weight", 2.0, scale=False), at_least("memory_ratio_3b", 3.4)),
    ),
    Claim(
        "distil-40-60-95", ("06",), "DistilBERT is 40 % smaller and 60 % faster than its teacher, and keeps more than 95 % of its quality.",
        all_of(at_least("smaller_percent", 35.0), at_least("faster_percent_low", 40.0), at_least("kept_percent_low", 95.0)),
    ),
    Claim(
        "maml-few-steps", ("07",), "From a MAML start a model adapts in a few gradient steps from a few examples.",
        all_of(positive("minus_pretrained_start"), at_most("steps", 5.0, scale=False)),
    ),
    Claim(
        "mtl-forget", ("03", "08"), "Multitask training and PEFT forget less than fine-tuning on one task.",
        all_of(positive("single_minus_multitask_loss"), positive("single_minus_peft_loss")),
    ),
    Claim(
        "flan-heldout", ("08",), "Instruction mixtures raise zero-shot skill on unseen tasks; mixing prompt kinds adds 2 points or more.",
        all_of(positive("gain"), at_least("mixed_prompts_gain_low", 2.0)),
    ),
    Claim(
        "icl-random-labels", ("09",), "Random labels in the demonstrations barely hurt in-context learning.",
        within("true_minus_random", 5.0),
    ),
    Claim(
        "cot-gain", ("09",), "Chains of thought lift arithmetic of several steps.",
        positive("worked_minus_direct"),
    ),
    Claim(
        "self-consistency", ("09",), "The majority of sampled chains beats one greedy chain.",
        positive("majority_minus_greedy"),
    ),
    Claim(
        "ppo-kl", ("10",), "The KL penalty keeps PPO near its reference; without it the reward is hacked.",
        all_of(positive("kl_without_minus_with"), positive("true_reward_with"), positive("true_reward_lost_without")),
    ),
    Claim(
        "dpo-stable", ("11",), "DPO needs no reward model and no sampling, and reaches PPO's frontier of reward against KL.",
        all_of(exactly(samples=0, reward_models=0), positive("reward_gain"), within("minus_ppo_at_equal_kl", 0.25)),
    ),
    Claim(
        "rest-reuse", ("11",), "ReST samples once and improves several times on the same data: cheaper than online reinforcement learning.",
        all_of(positive("reward_gain"), at_least("online_over_rest_samples", 2.0)),
    ),
    Claim(
        "rag-cutoff", ("12",), "Retrieval answers facts newer than the training data, where a closed book fails.",
        all_of(positive("rag_minus_closed_book"), positive("rag_minus_fine_tuned")),
    ),
    Claim(
        "pal-exact", ("13",), "A program computes exactly what a chain of thought gets wrong.",
        all_of(positive("pal_minus_cot"), at_least("right_given_right_program", 1.0)),
    ),
    Claim(
        "react-hallucination", ("13",), "Acting between thoughts hallucinates less than thinking alone on questions of several hops.",
        positive("cot_minus_react_hallucinations"),
    ),
    Claim(
        "agenttuning", ("13",), "Training on trajectories mixed with general instructions raises agent skill and keeps general skill.",
        all_of(positive("agent_gain"), within("general_change", 3.0)),
    ),
    Claim(
        "zero-1-2-3", ("14",),
        "Mixed-precision Adam takes 16 bytes a parameter; at 64 ranks ZeRO-1 takes up to 4 times less, ZeRO-2 8 times, ZeRO-3 64 times.",
        all_of(
            exactly(bytes_per_parameter=16),
            at_least("zero_1_ratio", 3.5, scale=False), at_least("zero_2_ratio", 7.0, scale=False), at_least("zero_3_ratio", 62.0, scale=False),
        ),
    ),
    Claim(
        "fsdp-vs-ddp", ("14",), "FSDP is as fast as DDP on small models, and trains what DDP has no memory for; talk grows with ranks.",
        all_of(within("relative_time_difference", 0.25), at_least("ddp_over_fsdp_state_bytes", 1.5), at_least("bytes_sent_growth", 1.0)),
    ),
    Claim(
        "scaling-power", ("02",), "Loss falls as a power law in parameters, data and compute.",
        all_of(positive("exponent"), at_least("r_squared", 0.95)),
    ),
    Claim(
        "bpe-example", ("02",), "Byte-pair encoding of low, lower, newest, widest merges first e+s, then es+t.",
        exactly(first_merges_equal=1), drift=0.0,
    ),
    Claim(
        "lora-vs-full", ("15",), "LoRA is mostly better than full fine-tuning.",
        positive("lora_minus_full"),
    ),
)  # fmt: skip

LEDGER: dict[str, Claim] = {claim.id: claim for claim in _CLAIMS}
