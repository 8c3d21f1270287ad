"""Recover: fine-tune an exported model towards its base."""
