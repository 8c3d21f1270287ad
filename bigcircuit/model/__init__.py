"""The frozen base model: architectures, sites, loading, fingerprint."""
