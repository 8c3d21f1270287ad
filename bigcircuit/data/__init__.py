"""Pairs of prompts: read or built, tokenised, divided and laid out in batches."""
