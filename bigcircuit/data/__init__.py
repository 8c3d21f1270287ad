"""Data: pairs of prompts, read or built, tokenised, divided into splits and collated into batches."""
