"""Ablations: what closed nodes output instead."""
