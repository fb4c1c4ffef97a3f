"""The supervised stage: data, hidden-state cache, option SFT, LoRA baseline, embedded backbone."""
