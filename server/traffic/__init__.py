"""Answers that may be kept, as prompts for the next distillation. Off unless asked for."""
