"""Configuration: YAML with positions, overrides, schemas, and the contract of a stage's settings."""
