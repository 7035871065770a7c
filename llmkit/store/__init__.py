"""Artifact directories: manifests, digests, atomic commit, locks, and how stages read and write them."""
