"""Ranks: process group, launchers, heartbeats and signals."""
