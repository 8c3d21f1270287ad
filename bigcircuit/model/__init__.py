"""Base model: architectures, sites, loading, fingerprint."""
