"""Every key there is, with its default; other configs start from here and set what differs. Not an experiment itself.

The groups mirror the dataclasses of bridge_jax (a test compares them key by key); method and task hold the keys of all
methods and of the chosen task, and a key that the chosen method never reads is warned about when it is set.
"""

from ml_collections import ConfigDict

from configs import tasks


def recipe(learning_rate: float) -> ConfigDict:
    """AdamW for one label (bridge_jax/optim/recipes.py Recipe)."""
    return ConfigDict(
        dict(
            learning_rate=learning_rate,
            schedule="constant",
            end_ratio=0.0,
            warmup_steps=0,
            decay_steps=0,
            clip_norm=1.0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            moments="float32",
        )
    )


def get_config(method: str = "bridge") -> ConfigDict:
    """Defaults with the method's name set."""
    return ConfigDict(
        dict(
            seed=0,
            steps=100,
            model=dict(
                path="",
                arch=ConfigDict(),
                dtype="float32",
                attention="auto",
                remat="full",
                logp_chunk=512,
                lora_rank=16,
                lora_alpha=16.0,
                lora_targets="layers/(q|k|v|o|gate|up|down)",
            ),
            method=dict(
                name=method or "bridge",
                # bridge
                lam=0.5,
                lam_schedule="constant",
                lam_end=1.0,
                lam_steps=0,
                lam_boundaries=(),
                lam_values=(),
                lam_gain=0.1,
                shadow_rollouts="shared",
                ratio_cap=0.0,
                w_learns="both",
                resync_every=0,
                inner_steps=1,
                shadow_storage="full",
                shadow_moments="",
                shadow_offload=False,
                sft_microbatches=0,
                # bridge, grpo and most others
                advantage="group",
                kl_coef=0.0,
                # grpo, dr_grpo; gspo
                clip_low=0.2,
                clip_high=0.2,
                updates_per_batch=1,
                normaliser="tokens",
                gspo_low=3e-4,
                gspo_high=4e-4,
                # dapo
                dapo_low=0.2,
                dapo_high=0.28,
                dapo_buffer=0.2,
                dapo_penalty=0.5,
                dapo_resample=2,
                # cold_start, hybrid, chord
                sft_steps=50,
                mu=1.0,
                chord_mu=0.9,
                chord_mu_end=0.05,
                chord_steps=200,
                chord_weighting="mu",
                # luffy, srft, hpt
                luffy_gamma=0.1,
                luffy_entropy=0.001,
                srft_expert=0.5,
                srft_rewarded=0.1,
                hpt_gate=0,
                hpt_advantage="mean",
                hpt_entropy=0.001,
            ),
            optim=dict(base=recipe(5e-7), lora=recipe(5e-7)),
            task=tasks.arithmetic(),
            data=dict(tokenizer="", buckets=(64,)),
            rollout=dict(
                temperature=1.0,
                stop=(),
                task_stop=True,
                max_new=64,
                cache_dtype="float32",
                reward_noise=0.0,
                calls=1,
                compactions=-1,
                cache_segments=-1,
            ),
            batch=dict(
                prompts_per_step=64,
                samples_per_prompt=5,
                demos_per_step=64,
                microbatch_rows=8,
                pack=0,
            ),
            mesh=dict(data=1, fsdp=-1, tensor=1, decode_tensor=0),
            eval=dict(every=10, rows=64, limit=0, samples=0, cooperation=False),
            checkpoint=dict(every=50, keep=2),
            log=dict(
                rollouts_every=1, eval_problems=8, mirrors=(), skipped_limit=5, ungraded_limit=0.1
            ),
            hosts=dict(coordinator="", count=0, index=-1, timeout_s=600),
        )
    )
