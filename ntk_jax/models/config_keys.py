"""The keys of a `config.json` that decide nothing here, and those that may only say what this decoder does anyway."""

from __future__ import annotations

from typing import Any

# What the base class of transformers' configs has kept in its files, now or in older versions, beside the model's
# numbers: none of it changes the hidden states of a sequence that is handed over whole.
_BOOKKEEPING = """
    architectures attn_implementation auto_map chunk_size_feed_forward dtype experts_implementation finetuning_task
    id2label is_llama_config label2id max_sequence_length model_max_length name_or_path num_labels output_attentions
    output_hidden_states prefix pretraining_tp problem_type return_dict task_specific_params tf_legacy_loss
    tie_encoder_decoder tie_last_hidden_states tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 xla_device
    cls_token_id decoder_start_token_id mask_token_id sep_token_id unk_token_id
"""
_TRAINING = """
    gradient_checkpointing gradient_checkpointing_kwargs initializer_range neftune_noise_alpha
"""
_GENERATION = """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
    begin_suppress_tokens cache_config cache_implementation compile_config constraints continuous_batching_config
    disable_compile diversity_penalty do_sample dola_layers early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids
    forced_bos_token_id forced_decoder_ids forced_eos_token_id guidance_scale is_assistant
    length_penalty low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_length
    min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences output_logits output_scores penalty_alpha prefill_chunk_size
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty return_dict_in_generate
    return_legacy_cache sequence_bias speculation_type stop_strings suppress_tokens target_lookbehind temperature
    token_healing top_h top_k top_p typical_p use_cache use_mtp watermarking_config
"""
_INERT = frozenset(f"{_BOOKKEEPING} {_TRAINING} {_GENERATION}".split())

# Keys that may be written down as long as they say what this decoder does.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "attention_dropout": (0.0,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "add_cross_attention": (False,),
    "is_causal": (True,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "use_mrope": (False,),
}


def is_inert(key: str) -> bool:
    """Whether a key cannot change a forward pass: one of those above, or a private note, which begins with `_`."""
    return key.startswith("_") or key in _INERT
