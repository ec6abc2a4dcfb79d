"""`moray model`: versions are added to a store, listed and verified (`experts.versions` says what they are)."""
